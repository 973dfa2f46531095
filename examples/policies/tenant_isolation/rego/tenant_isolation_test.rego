package tenant_isolation_test

import data.runtime_authz

call(subject, args) := {
	"subject": {"type": "user", "id": "alice", "properties": subject},
	"action": {"name": "tools/call"},
	"resource": {"type": "tool", "id": "read_account", "properties": {"data_class": "confidential"}},
	"context": {"call": {"args": args}},
}

test_own_tenant if {
	runtime_authz.tenant_own with input as call({"tenant": "acme"}, {"tenant": "acme"})
}

test_another if {
	"other_tenant" in runtime_authz.denied with input as call({"tenant": "acme"}, {"tenant": "evil"})
}

test_nobody if {
	"other_tenant" in runtime_authz.denied with input as call({}, {})
	"other_tenant" in runtime_authz.denied with input as call({"tenant": ""}, {"tenant": ""})
}
