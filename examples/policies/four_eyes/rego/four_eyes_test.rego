package four_eyes_test

import data.runtime_authz

call(approver) := {
	"subject": {"type": "user", "id": "alice"},
	"action": {"name": "tools/call"},
	"resource": {"type": "tool", "id": "pay", "properties": {"effect": "pay", "sink": "external"}},
	"context": {"approval": {"approver": approver}},
}

test_another if {
	not "own_approval" in runtime_authz.denied with input as call("user:bob")
}

test_oneself if {
	"own_approval" in runtime_authz.denied with input as call("user:alice")
	"own_approval" in runtime_authz.denied with input as call("alice")
	"own_approval" in runtime_authz.denied with input as call("")
}
