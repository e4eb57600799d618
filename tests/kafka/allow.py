"""Lets a user of Kafka do something.

    allow.py BROKERS USER TYPE NAME OPERATION...

TYPE is TOPIC, GROUP or TRANSACTIONAL_ID, OPERATION one of Kafka's, such as READ.
"""

import sys

from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)

brokers, user, kind, name, *operations = sys.argv[1:]
rights = [
    AclBinding(
        ResourceType[kind],
        name,
        ResourcePatternType.LITERAL,
        f"User:{user}",
        "*",
        AclOperation[operation],
        AclPermissionType.ALLOW,
    )
    for operation in operations
]
# Without a name of its own, the client would end before the brokers answer.
client = AdminClient({"bootstrap.servers": brokers})
for done in client.create_acls(rights, request_timeout=20).values():
    done.result()
