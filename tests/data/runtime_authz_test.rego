# Run with the shipped policy and data: opa test langchain_runtime_authz/policies tests/data/runtime_authz_test.rego
package runtime_authz_test

import data.runtime_authz

base := {
	"subject": {"type": "user", "id": "alice", "properties": {}},
	"action": {"name": "tools/call"},
	"resource": {
		"type": "tool",
		"id": "book",
		"properties": {"effect": "write", "sink": "internal", "data_class": "confidential", "profiled": true},
	},
	"context": {
		"schema_version": 2,
		"now": 1000,
		"task": {"id": "t", "epoch": 2, "digest": "d", "text": "x", "corrections": 0},
		"agent": {"path": ["root"], "id": "root", "attested": false},
		"delegation": {"depth": 1, "edges": []},
		"plan": {"id": "p", "source": "model", "planned": true, "stale": false, "changed": false, "position": 0, "of": 1},
		"call": {
			"id": "c",
			"state": "new",
			"args": {"amount": 10, "to": "UK12"},
			"args_digest": "sha256:1",
			"mandate": {"standing": "covered", "backed": false, "source": "words", "step": "s", "digest": "d", "deviations": []},
			"provenance": {},
			"changed": [],
		},
		"history": {
			"steps": 1,
			"calls": {},
			"effects": {},
			"denials": 0,
			"classes_read": ["public"],
			"recent": [],
			"streak": 0,
			"unplanned": 0,
			"tainted": 0,
			"rotations": 0,
			"last_minute": 1,
		},
		"lease": {"jti": "j", "epoch": 2, "exp": 1060, "grant": null, "seconds": 1, "steps": 1},
		"approval": null,
	},
}

asked(request) := answer if {
	answer := runtime_authz.decision with input as request
}

patched_request(patch) := object.union(base, patch)

patched(patch) := asked(patched_request(patch))

without(paths) := asked(json.remove(base, paths))

denies(answer, expected) if {
	answer.decision == false
	[reason.code | some reason in answer.context.reasons] == expected
	answer.context.obligations == []
}

asks(answer, expected) if {
	answer.decision == false
	[reason.code | some reason in answer.context.reasons] == expected
	[obligation] := answer.context.obligations
	object.remove(obligation, ["properties"]) == {"id": "approval", "type": "require_approval"}
}

permits(answer) if {
	answer.decision == true
	answer.context.reasons == []
}

properties(fields) := {"resource": {"properties": fields}}

compared(standing, backed) := {"context": {"call": {"mandate": {"standing": standing, "backed": backed}}}}

called(effect, standing, backed) := object.union(properties({"effect": effect}), compared(standing, backed))

unordered := called("pay", "none", false)

asks_unordered(answer) if asks(answer, ["effect", "not_ordered"])

granted(fields) := {"context": {"lease": {"grant": fields}}}

approval(source, authenticated) := object.union(unordered, {"context": {"approval": {
	"source": source,
	"approver": "bob",
	"authenticated": authenticated,
	"args_digest": "sha256:1",
}}})

# --- every action ---

test_the_answer_is_one_full_document if {
	patched({}) == {
		"decision": true,
		"context": {"reasons": [], "obligations": [], "ttl": null, "policy": {"revision": "r1"}},
	} with data.runtime_authz_data.revision as "r1"
}

test_a_ttl_is_of_its_action if {
	entering := {"action": {"name": "node/enter"}, "resource": {"type": "node"}}
	answered := patched(entering) with data.runtime_authz_data.ttl as {"node/enter": 30}
	answered.context.ttl == 30
	other := patched(entering) with data.runtime_authz_data.ttl as {"model/call": 30}
	other.context.ttl == null
	call := patched({}) with data.runtime_authz_data.ttl as {"tools/call": 30}
	call.context.ttl == null
}

test_a_valid_lease_permits_every_other_action if {
	every pair in [
		["run/start", "run"],
		["run/resume", "run"],
		["agent/invoke", "agent"],
		["node/enter", "node"],
		["model/call", "model"],
	] {
		patch := {
			"action": {"name": pair[0]},
			"resource": {"type": pair[1], "properties": {"effect": "admin", "tools": [], "provider_tools": []}},
			"context": {"call": null, "plan": null},
		}
		permits(patched(patch))
		expired := object.union(patch, {"context": {"lease": {"exp": 1000}}})
		denies(patched(expired), ["lease_invalid"])
	}
}

test_lease_invalid if {
	every lease in [{"exp": 1000}, {"exp": "zz"}, {"exp": null}, {"epoch": 1}, {"epoch": 3}, {"grant": "all"}] {
		denies(patched({"context": {"lease": lease}}), ["lease_invalid"])
	}
	denies(without(["context/lease/exp"]), ["lease_invalid"])
	denies(without(["context/now"]), ["lease_invalid"])
	denies(patched(granted({"tool": ["book"]})), ["lease_invalid"])
}

test_unknown_action if {
	denies(patched({"action": {"name": "tools/list"}}), ["unknown_action"])
	denies(patched({"action": {"name": null}}), ["unknown_action"])
	denies(patched({"resource": {"type": "agent"}}), ["unknown_action"])
}

test_no_permit if {
	every version in [1, 3, "2", null] {
		denies(patched({"context": {"schema_version": version}}), ["no_permit"])
	}
	denies(patched({"subject": {"type": ""}}), ["no_permit"])
	denies(patched({"context": {"history": {"denials": "0"}}}), ["no_permit"])
	denies(patched({"context": {"call": {"args": []}}}), ["no_permit"])
}

# --- grant ---

test_grant_tool if {
	permits(patched(granted({"tools": ["book"]})))
	denies(patched(granted({"tools": ["read"]})), ["grant_tool"])
	denies(patched(granted({"tools": []})), ["grant_tool"])
	denies(patched(granted({"tools": {"a": "book"}})), ["grant_tool"])
}

test_grant_argument if {
	every constraint in [{}, {"le": 10}, {"ge": 10.0}, {"one_of": [10.0, "x"]}, {"ge": 1, "le": 100}] {
		permits(patched(granted({"args": {"book": {"amount": constraint}}})))
	}
	every constraint in [
		{"le": 9}, {"ge": 11}, {"one_of": []}, {"one_of": ["10", true]}, {"one_of": "10"},
		{"le": "zz"}, {"lt": 100}, [], "any", null,
	] {
		denies(patched(granted({"args": {"book": {"amount": constraint}}})), ["grant_argument"])
	}
	permits(patched(granted({"args": {"other": {"amount": {"le": 1}}}})))
	denies(patched(granted({"args": {"book": {"absent": {}}}})), ["grant_argument"])
}

test_a_bound_takes_numbers_only if {
	every value in ["zz", true, null, [], {}, "10"] {
		called := {"context": {"call": {"args": {"amount": value}}}}
		denies(patched(object.union(granted({"args": {"book": {"amount": {"ge": 0}}}}), called)), ["grant_argument"])
	}
}

test_grant_data_class if {
	permits(patched(granted({"data_classes": ["confidential"]})))
	denies(patched(granted({"data_classes": ["public"]})), ["grant_data_class"])
}

test_grant_sink if {
	permits(patched(granted({"sinks": ["internal"]})))
	denies(patched(granted({"sinks": ["none"]})), ["grant_sink"])
}

test_grant_depth if {
	permits(patched(granted({"max_depth": 1})))
	denies(patched(granted({"max_depth": 0})), ["grant_depth"])
	denies(patched(granted({"max_depth": "zz"})), ["grant_depth"])
	invoke := {"action": {"name": "agent/invoke"}, "resource": {"type": "agent"}}
	permits(patched(object.union(invoke, granted({"max_depth": 1}))))
	denies(patched(object.union(invoke, granted({"max_depth": 0}))), ["grant_depth"])
}

test_grant_expired if {
	permits(patched(granted({"expires_at": 1001})))
	denies(patched(granted({"expires_at": 1000})), ["grant_expired"])
	denies(patched(granted({"expires_at": "zz"})), ["grant_expired"])
}

# --- plan, subject ---

test_stale_plan if {
	every effect in ["read", "fetch"] {
		permits(patched(object.union(properties({"effect": effect}), {"context": {"plan": {"stale": true}}})))
	}
	denies(patched({"context": {"plan": {"stale": true}}}), ["stale_plan"])
	denies(without(["context/plan/stale"]), ["stale_plan"])
}

test_unplanned if {
	every plan in [{"planned": false}, {"planned": "true"}] {
		permits(patched(object.union(properties({"effect": "read"}), {"context": {"plan": plan}})))
		denies(patched({"context": {"plan": plan}}), ["unplanned"])
	}
	denies(patched({"context": {"plan": null}}), ["unplanned"])
	asks(patched(object.union(properties({"verdict": "ask"}), {"context": {"plan": null}})), ["verdict"])
	denies(patched(object.union(properties({"verdict": "permit"}), {"context": {"plan": null}})), ["unplanned"])
	asks(patched(object.union(properties({"profiled": false}), {"context": {"plan": null}})), ["unprofiled"])
}

test_plan_changed if {
	changed := {"context": {"plan": {"planned": false, "changed": true}}}
	deviating := {"context": {"call": {"mandate": {"standing": "deviates"}}}}
	asks(patched(object.union(changed, deviating)), ["deviates", "effect", "plan_changed"])
	permits(patched(object.union_n([properties({"effect": "read"}), changed, deviating])))
	permits(patched(changed))
	denies(patched({"context": {"plan": {"changed": "false"}}}), ["no_permit"])
	denies(without(["context/plan/changed"]), ["no_permit"])
}

test_anonymous if {
	anonymous := {"subject": {"type": "anonymous"}}
	permits(patched(object.union(anonymous, properties({"effect": "read", "data_class": "public"}))))
	denies(patched(object.union(anonymous, properties({"effect": "read"}))), ["anonymous"])
	denies(patched(object.union(anonymous, properties({"data_class": "public"}))), ["anonymous"])
}

test_attested if {
	attested := {"context": {"agent": {"attested": true}}}
	denies(patched({}), ["not_attested"]) with data.runtime_authz_data.attested as ["pay", "write"]
	permits(patched(attested)) with data.runtime_authz_data.attested as ["pay", "write"]
	permits(patched(properties({"effect": "read"}))) with data.runtime_authz_data.attested as ["pay", "write"]
	every wrong in ["pay", null, ["smite"], [7], {"pay": true}] {
		denies(patched({}), ["not_attested"]) with data.runtime_authz_data.attested as wrong
	}
	every vague in ["true", 1, null] {
		denies(patched({"context": {"agent": {"attested": vague}}}), ["not_attested"]) with data.runtime_authz_data.attested as ["write"]
	}
}

# --- verdicts ---

test_effect if {
	every effect in ["fetch", "write", "send", "pay", "delete", "admin"] {
		permits(patched(called(effect, "covered", false)))
		asks(patched(called(effect, "deviates", false)), ["deviates", "effect"])
		denies(patched(called(effect, "forbidden", true)), ["forbidden"])
		every standing in ["outside", "none"] {
			asks(patched(called(effect, standing, false)), ["effect", "not_ordered"])
		}
	}
	every standing in ["covered", "deviates", "forbidden", "outside", "none"] {
		permits(patched(called("read", standing, false)))
	}
	denies(patched({}), ["effect"]) with data.runtime_authz_data.effects as {}
	denies(patched({}), ["effect"]) with data.runtime_authz_data.effects as {"write": "maybe"}
	denies(patched(properties({"effect": "smite"})), ["effect", "no_permit"])
}

test_backed_decides_where_the_row_has_it if {
	every standing in ["deviates", "outside", "none"] {
		permits(patched(called("fetch", standing, true)))
		every effect in ["write", "send", "pay", "delete", "admin"] {
			patched(called(effect, standing, true)).decision == false
		}
	}
	row := {"covered": "permit", "backed": "deny", "forbidden": "ask"}
	denies(patched(called("pay", "none", true)), ["effect", "not_ordered"]) with data.runtime_authz_data.effects.pay as row
	permits(patched(called("pay", "covered", true))) with data.runtime_authz_data.effects.pay as row
	asks(patched(called("pay", "forbidden", true)), ["effect", "forbidden"]) with data.runtime_authz_data.effects.pay as row
}

test_a_standing_that_the_row_lacks_denies if {
	row := {"covered": "permit"}
	denies(patched(called("pay", "outside", true)), ["effect", "not_ordered"]) with data.runtime_authz_data.effects.pay as row
	denies(patched(called("pay", "deviates", true)), ["deviates", "effect"]) with data.runtime_authz_data.effects.pay as row
	every wrong in [null, [], "maybe", {"covered": null}, {"covered": ["permit"]}, ["covered"]] {
		denies(patched(called("pay", "covered", true)), ["effect"]) with data.runtime_authz_data.effects.pay as wrong
	}
}

test_a_mandate_that_can_not_be_read_denies if {
	every effect in ["read", "fetch", "pay"] {
		every wrong in [null, "covered", [], {}, {"standing": "covered"}, {"backed": true}] {
			request := json.patch(patched_request(properties({"effect": effect})), [{
				"op": "replace",
				"path": "/context/call/mandate",
				"value": wrong,
			}])
			answer := asked(request)
			answer.decision == false
			"no_permit" in {reason.code | some reason in answer.context.reasons}
		}
		every wrong in [null, true, "COVERED", "backed", "*", ["covered"], {"covered": true}] {
			patched(called(effect, wrong, true)).decision == false
		}
		every wrong in [null, "true", 1, []] {
			denies(patched(called(effect, "covered", wrong)), ["no_permit"])
		}
	}
	denies(without(["context/call/mandate"]), ["effect", "no_permit"])
}

test_unprofiled if {
	asks(patched(properties({"profiled": false, "effect": "read"})), ["unprofiled"])
	asks(patched(properties({"profiled": "true"})), ["unprofiled"])
	denies(patched(properties({"profiled": false, "effect": "delete"})), ["unprofiled"])
	permits(patched(properties({"profiled": false}))) with data.runtime_authz_data.unprofiled as {"*": "permit"}
	denies(patched(properties({"profiled": false})), ["unprofiled"]) with data.runtime_authz_data.unprofiled as {}
}

read_of(class) := {"context": {"history": {"classes_read": ["public", class]}}}

test_data_flow if {
	outward := called_to("external", "deviates")
	every class in ["internal", "confidential"] {
		asks(patched(object.union(outward, read_of(class))), ["data_flow"]) with data.runtime_authz_data.effects.write as "permit"
	}
	every class in ["secret", "of-another-house"] {
		denies(patched(object.union(properties({"sink": "external"}), read_of(class))), ["data_flow"])
		permits(patched(object.union(properties({"sink": "internal"}), read_of(class))))
		permits(patched(object.union(properties({"sink": "none"}), read_of(class))))
	}
	permits(patched(properties({"sink": "external"})))
	denies(patched({"context": {"history": {"classes_read": "public"}}}), ["data_flow"])
}

called_to(sink, standing) := object.union(properties({"sink": sink}), compared(standing, false))

test_data_goes_where_the_mandate_says if {
	leaves := object.union(called_to("external", "covered"), read_of("confidential"))
	permits(patched(leaves))
	asks(patched(leaves), ["data_flow"]) with data.runtime_authz_data.declassify as []
	every wrong in [null, "covered", {"a": "covered"}, ["told"]] {
		asks(patched(leaves), ["data_flow"]) with data.runtime_authz_data.declassify as wrong
	}
	every standing in ["deviates", "outside", "none"] {
		other := object.union(leaves, compared(standing, true))
		asks(patched(other), ["data_flow"]) with data.runtime_authz_data.effects.write as "permit"
		permits(patched(other)) with data.runtime_authz_data.effects.write as "permit"
			with data.runtime_authz_data.declassify as [standing]
	}
	denies(patched(object.union(leaves, read_of("secret"))), ["data_flow"])
}

test_a_deny_hides_the_ask if {
	denies(patched(object.union(unordered, granted({"tools": []}))), ["grant_tool"])
}

test_denial_streak if {
	every standing in ["covered", "none"] {
		answer := patched(object.union(called("pay", standing, false), {"context": {"history": {"denials": 25}}}))
		answer.decision == false
		answer.context.reasons == [{"code": "denial_streak"}]
		answer.context.obligations == [{"id": "anomaly", "type": "revoke", "properties": {}}]
	}
	permits(patched({"context": {"history": {"denials": 24}}}))
}

# Where each bound of `anomaly` looks, how much trips it, its code, and whether that revokes.
trips := [
	["history", "denials", 25, "denial_streak", true],
	["history", "streak", 10, "denial_streak", true],
	["history", "last_minute", 100, "burst", true],
	["history", "unplanned", 3, "unplanned_streak", true],
	["history", "tainted", 5, "tainted_streak", true],
	["history", "rotations", 6, "rotations", true],
	["delegation", "depth", 8, "too_deep", false],
	["lease", "steps", 1000, "step_budget", false],
	["lease", "seconds", 3600, "time_budget", false],
]

test_each_anomaly_trips_at_its_bound if {
	every trip in trips {
		answer := patched({"context": {trip[0]: {trip[1]: trip[2]}}})
		answer.decision == false
		answer.context.reasons == [{"code": trip[3]}]
		count(answer.context.obligations) == count([1 | trip[4]])
		permits(patched({"context": {trip[0]: {trip[1]: trip[2] - 1}}}))
	}
}

test_what_is_missing_is_no_low_number if {
	every trip in trips {
		denies(without([concat("/", ["context", trip[0], trip[1]])]), ["no_permit"])
	}
}

test_a_bound_that_is_not_set_is_none if {
	every trip in trips {
		permits(patched({"context": {trip[0]: {trip[1]: trip[2]}}})) with data.runtime_authz_data.anomaly as {}
	}
}

test_data_that_changed_rotates if {
	every standing in ["covered", "none"] {
		answer := patched(object.union(called("pay", standing, false), {"context": {"call": {"changed": ["read_bill"]}}}))
		answer.decision == false
		answer.context.reasons[_].code == "data_changed"
		answer.context.obligations == [{"id": "data", "type": "rotate", "properties": {}}]
	}
	permits(patched(object.union(properties({"effect": "read"}), {"context": {"call": {"changed": ["read_bill"]}}})))
	denies(without(["/context/call/changed"]), ["no_permit"])
}

# --- model ---

model_call(fields) := {
	"action": {"name": "model/call"},
	"resource": {
		"type": "model",
		"id": "sonnet",
		"properties": object.union({"provider": "anthropic", "tools": [], "provider_tools": []}, fields),
	},
	"context": {"call": null, "plan": null},
}

test_a_model_may_be_called if {
	answer := patched(model_call({"tools": ["book", "read"]}))
	permits(answer)
	answer.context.obligations == []
}

test_a_model_must_be_listed if {
	listed := {"names": ["sonnet"], "providers": ["anthropic"], "provider_tools": []}
	permits(patched(model_call({}))) with data.runtime_authz_data.models as listed
	every other in [
		{"names": ["opus"]}, {"names": []}, {"names": "sonnet"}, {"providers": ["openai"]}, {"providers": {"a": "anthropic"}},
	] {
		unlisted := object.union(listed, other)
		denies(patched(model_call({})), ["model"]) with data.runtime_authz_data.models as unlisted
	}
	denies(patched(model_call({"provider": null})), ["model"]) with data.runtime_authz_data.models as listed
}

test_a_model_call_has_a_form if {
	every fields in [{"tools": null}, {"tools": [1]}, {"provider_tools": "web"}, {"provider_tools": [null]}] {
		denies(patched(model_call(fields)), ["no_permit"])
	}
	denies(patched(model_call({})), ["model", "no_permit"]) with data.runtime_authz_data.models as null
}

test_tools_are_withheld_from_a_model if {
	request := object.union(
		model_call({"tools": ["book", "read"], "provider_tools": ["web_search", "code"]}),
		granted({"tools": ["book"]}),
	)
	answer := patched(request)
	permits(answer)
	answer.context.obligations == [{
		"id": "withhold",
		"type": "withhold_tools",
		"properties": {"tools": ["read"], "provider_tools": ["web_search", "code"]},
	}]
	allowed := {"provider_tools": ["web_search", "code"]}
	open := patched(model_call({"provider_tools": ["code"]})) with data.runtime_authz_data.models as allowed
	open.context.obligations == []
}

# --- what a call can set going ---

test_a_call_that_sends_to_nobody_has_no_sink if {
	nobody := {
		"resource": {"properties": {"sink": "external"}},
		"context": {"history": {"classes_read": ["secret"]}, "call": {"sink": "none"}},
	}
	permits(patched(nobody))
	denies(patched(object.union(nobody, {"context": {"call": {"sink": "nowhere"}}})), ["data_flow"])
	denies(patched(object.union(nobody, {"context": {"call": {"sink": null}}})), ["data_flow"])
}

reaches(effect, sink) := {"resource": {"properties": {"reaches": [
	{"tool": "t", "effect": "read", "sink": "none", "data_class": "public"},
	{"tool": "u", "effect": effect, "sink": sink, "data_class": "secret"},
]}}}

test_a_chain_is_judged_by_its_worst_link if {
	permits(patched(reaches("write", "internal")))
	every effect in ["pay", "admin"] {
		permits(patched(reaches(effect, "none")))
		outside := object.union(reaches(effect, "none"), called("read", "outside", true))
		asks_unordered(patched(outside))
		denies(patched(object.union(outside, compared("forbidden", true))), ["forbidden"])
	}
	leak := {"context": {"history": {"classes_read": ["secret"]}}}
	denies(patched(object.union(reaches("write", "external"), leak)), ["data_flow"])
	every garbage in [null, "x", {}, [{}], [{"effect": "read"}], [{"effect": "smite", "sink": "none"}]] {
		patched({"resource": {"properties": {"reaches": garbage}}}).decision == false
	}
}

# --- approval ---

edited(from) := object.union(approval("interrupt", true), {"context": {"approval": {"edited_from": from}}})

test_an_edit_must_be_enough if {
	permits(patched(edited("book")))
	permits(patched(edited("other")))
	every case in [["args", "book", true], ["args", "other", false], ["none", "book", false], ["any", "other", true]] {
		needed := {"*": {"sources": ["interrupt"], "authenticated": false, "edits": case[0], "expires_in": 86400}}
		answer := patched(edited(case[1])) with data.runtime_authz_data.approvals as needed
		answer.decision == case[2]
	}
	unsaid := {"*": {"sources": ["interrupt"], "authenticated": false, "expires_in": 86400}}
	asks_unordered(patched(edited("book"))) with data.runtime_authz_data.approvals as unsaid
	permits(patched(edited(null))) with data.runtime_authz_data.approvals as unsaid
}

# A rule's own terms next to the row of the data.
with_term(request, term) := answer if {
	row := {"sources": ["interrupt", "application"], "authenticated": false, "edits": "any", "expires_in": 86400}
	answer := data.runtime_authz.decision with input as request with data.runtime_authz.approval_terms as {row, term}
}

by(source, people) := object.union(approval(source, false), {"context": {"approval": {"approvers": people}}})

test_a_rule_can_only_tighten_the_terms if {
	two := {"approvers": {"min": 2, "distinct_from_subject": true}, "expires_in": 60}
	asks := with_term(patched_request(by("interrupt", ["user:bob"])), two)
	[o.id | some o in asks.context.obligations] == ["approval", "approval:1"]
	{o.properties | some o in asks.context.obligations} == {{"expires_in": 86400}, two}
	with_term(patched_request(by("interrupt", ["user:bob", "user:carol"])), two).decision == true
	with_term(patched_request(by("interrupt", ["user:bob", "user:alice"])), two).decision == false
	with_term(patched_request(by("application", ["user:bob"])), {"sources": ["application", "hitl"]}).decision == true
	with_term(patched_request(by("hitl", ["user:bob"])), {"sources": ["application", "hitl"]}).decision == false
	with_term(patched_request(by("interrupt", ["user:bob"])), {"authenticated": true}).decision == false
	every looser in [{"approvers": {"min": 1}}, {"edits": "any"}, {"authenticated": false}, {"expires_in": 999999}, {}] {
		with_term(patched_request(by("hitl", ["user:bob"])), looser).decision == false
		with_term(patched_request(by("interrupt", ["user:bob"])), looser).decision == true
	}
	every garbage in [null, "x", [], {"aprovers": {}}, {"sources": "hitl"}, {"authenticated": "no"}, {"edits": "all"}, {"expires_in": 0}] {
		answer := with_term(patched_request(by("interrupt", ["user:bob"])), garbage)
		denies(answer, ["no_permit"])
	}
}

test_a_question_lasts_as_long_as_the_data_says if {
	for_ever := patched(unordered) with data.runtime_authz_data.approvals as {"pay": {"sources": []}}
	for_ever.context.obligations[0].properties == {}
	minute := {"pay": {"sources": [], "expires_in": 60}}
	answer := patched(unordered) with data.runtime_authz_data.approvals as minute
	answer.context.obligations[0].properties == {"expires_in": 60}
	every term in ["60", 0, -1, 1.5, null] {
		spoiled := {"pay": {"sources": ["interrupt"], "authenticated": false, "expires_in": term}}
		denies(patched(approval("interrupt", true)), ["no_permit"]) with data.runtime_authz_data.approvals as spoiled
	}
}

test_a_row_says_what_differs_from_the_others if {
	rows := {"*": {"sources": ["interrupt"], "authenticated": true, "asks": {"run": 5, "hour": 9}}, "pay": {"asks": {"run": 1}}}
	answer := patched(unordered) with data.runtime_authz_data.approvals as rows
	answer.context.obligations[0].properties == {"asks": {"run": 1, "hour": 9}}
	permits(patched(approval("interrupt", true))) with data.runtime_authz_data.approvals as rows
	asks_unordered(patched(approval("interrupt", false))) with data.runtime_authz_data.approvals as rows
}

approved_by(people) := object.union(approval("interrupt", true), {"context": {"approval": {"approvers": people}}})

test_four_eyes if {
	rule := {"pay": {
		"sources": ["interrupt", "hitl"],
		"authenticated": true,
		"edits": "any",
		"approvers": {"min": 2, "distinct_from_subject": true},
	}}
	pay := properties({"effect": "pay"})
	two := object.union(approved_by(["user:x1", "user:x2"]), pay)
	permits(patched(two)) with data.runtime_authz_data.approvals as rule
	same := concat(":", [base.subject.type, base.subject.id])
	every people in [[], ["user:x1"], ["user:x1", "user:x1"], ["user:x1", same], "user:x1 user:x2", null] {
		answer := patched(object.union(approved_by(people), pay))
			with data.runtime_authz_data.approvals as rule
		answer.decision == false
	}
}

test_who_approves if {
	rule := {"pay": {
		"sources": ["interrupt"],
		"authenticated": true,
		"edits": "any",
		"approvers": {"who": ["user:bob"]},
		"fallback": {"after": 60, "who": ["user:carol"]},
	}}
	pay := properties({"effect": "pay"})
	every who in ["user:bob", "user:carol"] {
		answer := patched(object.union(approved_by([who]), pay))
			with data.runtime_authz_data.approvals as rule
		answer.decision == true
	}
	answer := patched(object.union(approved_by(["user:dave"]), pay))
		with data.runtime_authz_data.approvals as rule
	answer.decision == false
	some obligation in answer.context.obligations
	obligation.properties == {"approvers": rule.pay.approvers, "fallback": rule.pay.fallback}
	nobody := object.union(rule, {"pay": {"approvers": {"who": []}}})
	unapproved := patched(object.union(approved_by(["user:dave"]), pay))
		with data.runtime_authz_data.approvals as nobody
	unapproved.decision == false
}

test_an_approval_lifts_an_ask if {
	permits(patched(approval("interrupt", false)))
	permits(patched(approval("application", true)))
	permits(patched(approval("hitl", false)))
	asks_unordered(patched(approval("rumour", true)))
	other := {"context": {"call": {"args_digest": "sha256:2"}}}
	asks_unordered(patched(object.union(approval("interrupt", false), other)))
	denies(patched(object.union(approval("interrupt", true), granted({"tools": []}))), ["grant_tool"])
	forbidden := object.union(approval("interrupt", true), compared("forbidden", true))
	denies(patched(forbidden), ["forbidden"])
}

test_what_suffices_is_data if {
	authenticated := {
		"*": {"sources": ["hitl"], "authenticated": false},
		"pay": {"sources": ["interrupt"], "authenticated": true},
	}
	asks_unordered(patched(approval("interrupt", false))) with data.runtime_authz_data.approvals as authenticated
	asks_unordered(patched(approval("hitl", true))) with data.runtime_authz_data.approvals as authenticated
	permits(patched(approval("interrupt", true))) with data.runtime_authz_data.approvals as authenticated
	asks_unordered(patched(approval("interrupt", true))) with data.runtime_authz_data.approvals as {}
	unsaid := {"*": {"sources": ["interrupt"]}}
	asks_unordered(patched(approval("interrupt", false))) with data.runtime_authz_data.approvals as unsaid
}

# --- obligations ---

test_a_rate_is_an_obligation if {
	answer := patched(approval("interrupt", false))
	answer.context.obligations == [{
		"id": "rate:pay",
		"type": "rate_limit",
		"properties": {"counter": "effect:pay", "window": 60, "max": 5},
	}]
}

test_a_budget_is_an_obligation if {
	answer := patched({}) with data.runtime_authz_data.budget as {"effects": {"write": {"max": 3}, "pay": {"max": 1}}}
	answer.context.obligations == [{
		"id": "budget:effect:write",
		"type": "budget",
		"properties": {"counter": "effect:write", "max": 3},
	}]
	permits(answer)
	both := patched({}) with data.runtime_authz_data.budget as {
		"effects": {"write": {"max": 3}},
		"tools": {"book": {"counter": "bookings", "max": 2}, "other": {"max": 0}},
	}
	[o.properties | some o in both.context.obligations] == [
		{"counter": "effect:write", "max": 3},
		{"counter": "bookings", "max": 2},
	]
}

told(channel) := {"id": concat(":", ["notify", channel]), "type": "notify", "properties": {"channel": channel}}

test_whom_each_outcome_tells if {
	tables := {
		"effects": {"write": {"permit": "desk", "deny": "security"}, "pay": {"ask": "desk"}},
		"tools": {"book": {"permit": "books", "deny": "security"}},
	}
	permitted := patched({}) with data.runtime_authz_data.notify as tables
	permits(permitted)
	permitted.context.obligations == [told("books"), told("desk")]
	denied := patched(granted({"tools": []})) with data.runtime_authz_data.notify as tables
	denied.decision == false
	denied.context.obligations == [told("security")]
	question := patched(unordered) with data.runtime_authz_data.notify as tables
	question.decision == false
	[o.type | some o in question.context.obligations] == ["require_approval", "notify"]
	elsewhere := patched(granted({"tools": []})) with data.runtime_authz_data.notify as {"tools": {"other": {"deny": "desk"}}}
	elsewhere.context.obligations == []
}

test_data_from_before_these_tables_says_nothing_of_them if {
	before := object.remove(data.runtime_authz_data, ["budget", "notify"])
	permits(patched({})) with data.runtime_authz_data as before
}

test_a_table_that_can_not_be_read_denies if {
	every table in [
		null, "none", [], {"effect": {}}, {"effects": []}, {"effects": {"write": null}}, {"effects": {"write": {}}},
		{"tools": {"book": {"max": "3"}}}, {"tools": {"book": {"max": -1}}}, {"tools": {"book": {"max": 1.5}}},
		{"tools": {"book": {"max": 1, "counter": ""}}}, {"tools": {"book": {"max": 1, "window": 60}}},
	] {
		denies(patched({}), ["no_permit"]) with data.runtime_authz_data.budget as table
	}
	every table in [
		null, "none", [], {"effect": {}}, {"effects": []}, {"effects": {"write": "desk"}},
		{"tools": {"book": {"permitted": "desk"}}}, {"tools": {"book": {"permit": ""}}}, {"tools": {"book": {"permit": 1}}},
	] {
		denies(patched({}), ["no_permit"]) with data.runtime_authz_data.notify as table
	}
}

test_a_redaction_is_an_obligation if {
	answer := patched({}) with data.runtime_authz_data.redact as {"book": ["iban"]}
	answer.context.obligations == [{"id": "redact", "type": "redact", "properties": {"fields": ["iban"]}}]
}

test_a_limit_that_can_not_be_read_denies if {
	denies(patched({}), ["no_permit"]) with data.runtime_authz_data.rates as {"write": {"max": 5}}
	denies(patched({}), ["no_permit"]) with data.runtime_authz_data.rates as "none"
	denies(patched({}), ["no_permit"]) with data.runtime_authz_data.redact as {"book": "iban"}
	denies(patched({}), ["no_permit"]) with data.runtime_authz_data.redact as null
	denies(patched({}), ["no_permit"]) with data.runtime_authz_data.anomaly as null
	denies(patched({}), ["no_permit"]) with data.runtime_authz_data.anomaly as {"max_denials": "25"}
	denies(patched({}), ["no_permit"]) with data.runtime_authz_data.anomaly as {"max_denails": 25}
}

# --- garbage ---

test_no_top_level_garbage_permits if {
	every garbage in [null, true, 0, "", "input", [], [1], {}, {"action": "tools/call"}, {"context": []}] {
		answer := asked(garbage)
		answer.decision == false
		count(answer.context.reasons) > 0
	}
}

test_no_missing_member_permits if {
	every path in [
		"subject", "subject/type", "action", "action/name", "resource", "resource/type", "resource/id",
		"resource/properties", "resource/properties/effect", "resource/properties/sink",
		"context", "context/schema_version", "context/now", "context/task", "context/task/epoch",
		"context/lease", "context/lease/exp", "context/lease/epoch", "context/lease/grant",
		"context/plan", "context/plan/planned", "context/plan/stale", "context/plan/changed", "context/call",
		"context/call/args", "context/call/mandate", "context/call/mandate/standing", "context/call/mandate/backed",
		"context/history", "context/history/denials", "context/history/classes_read",
	] {
		without([path]).decision == false
	}
}

test_no_wrong_type_permits if {
	every path in [
		"/subject/type", "/action/name", "/resource/type", "/resource/id", "/resource/properties/effect",
		"/resource/properties/sink", "/context/now", "/context/task/epoch", "/context/lease/exp",
		"/context/lease/epoch", "/context/plan/planned", "/context/call/args", "/context/call/mandate",
		"/context/call/mandate/standing", "/context/call/mandate/backed", "/context/history/denials",
		"/context/history/classes_read",
	] {
		every value in [null, "zz", -1, [], [[]], true] {
			answer := asked(json.patch(base, [{"op": "replace", "path": path, "value": value}]))
			answer.decision == accepted(path, value)
		}
	}
}

# The few replacements above that are not faults.
default accepted(_, _) := false

accepted(path, value) if {
	[path, value] in {
		["/subject/type", "zz"],
		["/resource/id", "zz"],
		["/context/now", -1],
		["/context/plan/planned", true],
		["/context/call/mandate/backed", true],
		["/context/history/denials", -1],
		["/context/history/classes_read", []],
	}
}

# --- whose reads count ---------------------------------------------------------------------------------

test_what_the_agent_can_know_counts_where_it_is_told if {
	data.runtime_authz.flow_bearable_to("external") with input as {"context": {"history": {"classes_read": ["secret"], "classes_held": []}}}
		with data.runtime_authz_data.data_flow as {"*": {"external": "deny"}}
	not data.runtime_authz.flow_bearable_to("external") with input as {"context": {"history": {"classes_read": [], "classes_held": ["secret"]}}}
		with data.runtime_authz_data.data_flow as {"*": {"external": "deny"}}
}

test_what_anybody_read_counts_where_it_is_not_told if {
	every told in [{}, {"classes_held": null}] {
		not data.runtime_authz.flow_bearable_to("external") with input as {"context": {"history": object.union({"classes_read": ["secret"]}, told)}}
			with data.runtime_authz_data.data_flow as {"*": {"external": "deny"}}
	}
}

test_a_malformed_list_of_classes_lets_nothing_flow if {
	every wrong in ["", 0, false, {"secret": true}] {
		not data.runtime_authz.flow_bearable_to("external") with input as {"context": {"history": {"classes_read": [], "classes_held": wrong}}}
			with data.runtime_authz_data.data_flow as {"*": {"external": "permit"}}
	}
}

# --- data of another shape ---

test_data_of_another_shape_takes_nothing_away if {
	every rates in [null, [], {"write": null}, {"write": {}}, {"write": {"window": 0.5, "max": 1}}] {
		denies(patched({}), ["no_permit"]) with data.runtime_authz_data.rates as rates
	}
	changed := {"context": {"call": {"changed": ["read"]}}}
	every plan in [{"stale": null}, {"stale": {"a": "pay"}}, {"stale": ["pay", null]}, {"stale": [], "unplanned_permitted": {"a": "read"}}] {
		spoiled := object.union({"stale": [], "unplanned_permitted": []}, plan)
		answer := patched(changed) with data.runtime_authz_data.plan as spoiled
		[reason.code | some reason in answer.context.reasons] == ["data_changed", "no_permit"]
	}
	every approvals in [null, {"*": null}, {"*": []}] {
		denies(patched(unordered), ["no_permit"]) with data.runtime_authz_data.approvals as approvals
	}
}
