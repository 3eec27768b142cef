"""Print the realm ``tests`` for Keycloak's import: SMART scopes, three users, a backend client. Test credentials only."""

from __future__ import annotations

import json
import sys

AUDIENCE = "https://shield.example/fhir"
PASSWORD = "test-only"


def mapper(name: str, kind: str, **config: str) -> dict[str, object]:
    settings = {"access.token.claim": "true", **{key.replace("_", "."): value for key, value in config.items()}}
    return {"name": name, "protocol": "openid-connect", "protocolMapper": kind, "config": settings}


def scope(name: str, *mappers: dict[str, object], shown: bool = True) -> dict[str, object]:
    attributes = {"include.in.token.scope": "true" if shown else "false"}
    return {"name": name, "protocol": "openid-connect", "attributes": attributes, "protocolMappers": list(mappers)}


def attribute(name: str, source: str) -> dict[str, object]:
    kind = "oidc-usermodel-attribute-mapper"
    return mapper(name, kind, user_attribute=source, claim_name=name, jsonType_label="String")


def user(name: str, role: str, **attributes: str) -> dict[str, object]:
    return {
        "username": name,
        "enabled": True,
        "email": f"{name}@tests.example",
        "emailVerified": True,
        "firstName": name,
        "lastName": "Test",
        "credentials": [{"type": "password", "value": PASSWORD}],
        "realmRoles": [role],
        "attributes": {key: [value] for key, value in attributes.items()},
    }


def main() -> None:
    smart = ["user/*.rs", "patient/*.rs", "system/*.rs", "system/*.cruds", "launch/patient"]
    plain = ["tests-context"]
    context = scope(
        "tests-context",
        mapper("subject", "oidc-sub-mapper"),
        mapper("audience", "oidc-audience-mapper", included_custom_audience=AUDIENCE),
        mapper("introspector", "oidc-audience-mapper", included_client_audience="backend"),
        mapper(
            "roles",
            "oidc-usermodel-realm-role-mapper",
            claim_name="realm_access.roles",
            multivalued="true",
            jsonType_label="String",
        ),
        attribute("patient", "patient_id"),
        attribute("fhirUser", "fhir_user"),
        shown=False,
    )
    common = {"defaultClientScopes": plain, "optionalClientScopes": smart}
    app = {"clientId": "app", "publicClient": True, "directAccessGrantsEnabled": True, **common}
    backend = {
        "clientId": "backend",
        "secret": PASSWORD,
        "serviceAccountsEnabled": True,
        "standardFlowEnabled": False,
        **common,
    }
    realm = {
        "realm": "tests",
        "enabled": True,
        "sslRequired": "none",
        "accessTokenLifespan": 3600,
        "roles": {"realm": [{"name": "clinician"}, {"name": "nurse"}, {"name": "patient-portal"}]},
        "clientScopes": [context, *(scope(name) for name in smart)],
        "clients": [app, backend],
        "users": [
            user("reed", "clinician", fhir_user="Practitioner/dr-reed"),
            user("vale", "nurse", fhir_user="Practitioner/nurse-vale"),
            user("ada", "patient-portal", fhir_user="Patient/pat-1", patient_id="pat-1"),
        ],
        "components": {
            "org.keycloak.userprofile.UserProfileProvider": [
                {"providerId": "declarative-user-profile", "config": {"kc.user.profile.config": [json.dumps(PROFILE)]}}
            ]
        },
    }
    json.dump(realm, sys.stdout, indent=1)


PROFILE = {
    "attributes": [{"name": name} for name in ("username", "email", "firstName", "lastName")],
    "unmanagedAttributePolicy": "ENABLED",
}

if __name__ == "__main__":
    main()
