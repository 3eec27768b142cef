"""What operators see: metrics, health, logs. Reads audit records; decides nothing, and knows no patient and no user."""
