package data_residency_test

import data.runtime_authz

call(tool, args, read) := {
	"action": {"name": "tools/call"},
	"resource": {"type": "tool", "id": tool, "properties": {"data_class": "public", "sink": "internal"}},
	"context": {"call": {"args": args}, "history": {"classes_read": read}},
}

test_at_home if {
	not "residency" in runtime_authz.denied with input as call("store", {"region": "eu"}, ["health"])
}

test_abroad if {
	"residency" in runtime_authz.denied with input as call("store", {"region": "us"}, ["health"])
	"residency" in runtime_authz.denied with input as call("store", {}, ["health"])
	"residency" in runtime_authz.denied with input as call("unheard-of", {}, ["health"])
}

test_the_strictest_class_counts if {
	"residency" in runtime_authz.denied with input as call("store", {"region": "ch"}, ["health", "confidential"])
}

test_what_is_bound_nowhere_goes_anywhere if {
	not "residency" in runtime_authz.denied with input as call("store", {"region": "us"}, ["public"])
}
