"""Rules: from YAML files to a compiled set. ``rule`` is the syntax tree, ``load`` reads, ``check`` advises, ``compile`` serves."""
