# The shipped policy. One question (`EvaluationRequest`, version 2), one answer:
#
#   {"decision": bool, "context": {"reasons": [{"code": ...}], "obligations": [...], "ttl": null,
#    "policy": {"revision": ...}}}
#
# It is steered by `data.runtime_authz_data` (data.json), so that behaviour changes without a rebuild.
# A verdict is "permit", "ask" (an approval can lift it) or "deny"; anything else denies, and so does
# what is missing. Effects are compute, read, fetch, write, send, pay, delete, admin; sinks are none,
# internal, external; data classes and tools are names of your own. The `verdict` of a tool's profile may ask
# about each call or deny it; `permit` lifts what would ask, but no denial, nor what the mandate is against.
#
#   revision    string, carried in the answer; `WasmPDP` puts its own fingerprint here
#   effects     effect -> verdict, for tools with a reviewed profile; or effect -> {standing or "backed" ->
#               verdict}. The standing says how the call compares with the task's mandate: covered, deviates,
#               forbidden, outside, none. If the row has "backed" and the call is backed, "backed" decides in
#               place of deviates, outside and none. A call is backed if each argument that decides whom or what
#               it hits is told or known. A missing member denies
#   unprofiled  effect or "*" -> verdict, for tools without one
#   data_flow   data class or "*" -> sink -> verdict: may data of a class that the acting agent can
#               know something of reach a tool with this sink? (sink "none" always may; a policy that
#               wants every agent judged by what any of them read asks `history.classes_read`)
#   declassify  standings: a flow that would ask need not if the call has one of these
#   plan        stale: effects refused when the plan belongs to an older task;
#               unplanned_permitted: effects permitted although no recorded plan holds the call
#   anonymous   effects, data_classes: all that a subject of type "anonymous" may use
#   attested    effects that an agent may have only if its process proved its workload (absent: none)
#   approvals   effect or "*" -> {sources, authenticated, expires_in, edits, ...}: which approval lifts an
#               "ask". What an effect's row does not say, "*" says. Sources are interrupt, application and
#               hitl (LangChain's own review, whose word is taken as it comes: never authenticated);
#               `authenticated: true` demands a verified approver; it counts `expires_in` seconds from the
#               question on (absent: as long as the task stands); `edits` says whether an approver may put
#               other arguments ("args") or another tool too ("any") in a call's place, or nothing ("none").
#               `approvers` {min, distinct_from_subject, who}: how many people must approve, whether the
#               subject may be one, and which (`type:id`; absent: any). `fallback` {after, who}: who may too,
#               once nobody answered for so many seconds. `asks` {run, hour}: how many questions one run may
#               ask, and one subject in an hour. The PEP counts both, and people, atomically. A rule of your own adds
#               terms for the calls that it names: `approval_terms contains {"approvers": {"min": 2}} if ...`
#   models      providers, names: of models that may be called (null: any); provider_tools: tools run
#               by the provider that a model may be given. Others are taken out of the model's request
#   rates       effect -> {window, max}: at most `max` permitted calls of a thread in `window` seconds. The
#               PEP counts, atomically; the policy only obliges it to
#   budget      {effects, tools}: effect or tool -> {max, counter}: at most `max` permitted calls of one
#               thread. `counter` is a name that rows may share; absent, each row counts by itself
#   notify      {effects, tools}: effect or tool -> {permit, ask, deny}: the channel that is told of such
#               an outcome; a permit that cannot be told is a deny
#   redact      tool -> fields of its result that the PEP must redact
#   ttl         action -> seconds for which a run may use its permit again, under the same epoch and revision
#               (`node/enter`, `model/call`; at most 3600). Absent, each entry of a node is asked about, and a
#               permit for a model or a tool node holds until epoch or revision change. 0 keeps none. Give
#               more for `node/enter` only if no rule of your own about nodes reads what changes meanwhile: `history`,
#               `now`, `local`, `delegation`, or the `steps` and `seconds` of the lease
#   anomaly     what revokes the run when it reaches so many: max_denials, max_streak (denials in a
#               row), max_per_minute (permitted calls), max_unplanned, max_tainted, max_rotations (of
#               the task, by others than its subject, without a side effect between). What only denies:
#               max_depth (agents below the root), max_steps and max_seconds (of one root entry).
#               An absent or null bound is none
#
# How rules are written here. In Rego `not x > y` is undefined, not true, when an operand is missing,
# and numbers compare with strings. So each condition is a positive rule with type checks, and what
# denies is `not <rule>`. `x in y` also looks into an object's values, so lists are checked to be lists:
# data of another shape takes no demand away. A rule of a set names its action in full (not `is_call`), so
# that OPA's index skips it for other actions. Only builtins native to Wasm are used, nothing of the input
# is echoed, and time is `input.context.now`.
package runtime_authz

import data.runtime_authz_data as cfg

# Total: whatever comes in, there is exactly one answer.
default decision := {
	"decision": false,
	"context": {
		"reasons": [{"code": "no_permit"}],
		"obligations": [],
		"ttl": null,
		"policy": {"revision": ""},
	},
}

decision := answer(false, sort(denied), array.concat(array.concat(revocation, rotation), notices("deny")), null) if {
	count(denied) > 0
} else := answer(false, sort(asked), array.concat(approval_needed, notices("ask")), null) if {
	count(asked) > 0
	not allowed
	not approved
} else := answer(true, [], array.concat(sort(obliged), notices("permit")), ttl) if {
	action_known
	lease_valid
}

# The calls of one message in one evaluation: `{"requests": [input, …]}`, one answer each, in order.
batch := [given |
	some request in input.requests
	given := decision with input as request
]

answer(verdict, codes, obligations, seconds) := {
	"decision": verdict,
	"context": {
		"reasons": [{"code": code} | some code in codes],
		"obligations": obligations,
		"ttl": seconds,
		"policy": {"revision": revision},
	},
}

# What is not a count denies: the answer is then malformed.
default ttl := null

ttl := cfg.ttl[input.action.name] if input.action.name in {"node/enter", "model/call"}

default revision := ""

revision := cfg.revision if is_string(cfg.revision)

# --- every action ---------------------------------------------------------------------------------

resource_types := {
	"run/start": "run",
	"run/resume": "run",
	"agent/invoke": "agent",
	"node/enter": "node",
	"model/call": "model",
	"tools/call": "tool",
}

denied contains "unknown_action" if not action_known

denied contains "no_permit" if not well_formed

denied contains "lease_invalid" if not lease_valid

denied contains "grant_expired" if not grant_unexpired

action_known if resource_types[input.action.name] == input.resource.type

well_formed if {
	input.context.schema_version == 2
	is_string(input.subject.type)
	input.subject.type != ""
	is_string(input.resource.id)
}

lease_valid if {
	is_number(input.context.now)
	is_number(input.context.lease.exp)
	input.context.lease.exp > input.context.now
	is_number(input.context.lease.epoch)
	input.context.lease.epoch == input.context.task.epoch
	grant_known
}

# --- grant: null, or `Grant.to_json()`; an absent field does not limit ---------------------------------

default grant := {}

grant := input.context.lease.grant if is_object(input.context.lease.grant)

grant_known if input.context.lease.grant == null

# A field that this policy does not know would be a limit that it does not keep. `audiences` is kept where
# tokens are minted, and `steps` where a call is compared with the mandate.
grant_known if {
	is_object(input.context.lease.grant)
	every field, _ in grant {
		field in {"tools", "args", "data_classes", "sinks", "audiences", "steps", "max_depth", "budgets", "expires_at"}
	}
}

grant_unexpired if object.get(grant, "expires_at", null) == null

grant_unexpired if {
	is_number(grant.expires_at)
	is_number(input.context.now)
	input.context.now < grant.expires_at
}

depth_granted if object.get(grant, "max_depth", null) == null

depth_granted if {
	is_number(grant.max_depth)
	is_number(input.context.delegation.depth)
	input.context.delegation.depth <= grant.max_depth
}

tool_granted if within(object.get(grant, "tools", null), input.resource.id)

data_class_granted if within(object.get(grant, "data_classes", null), input.resource.properties.data_class)

sink_granted if within(object.get(grant, "sinks", null), input.resource.properties.sink)

within(names, _) if names == null

within(names, name) if {
	is_array(names)
	name in names
}

# A constrained argument must be present. `grant.Constraint.permits` in Rego.
arguments_granted if {
	constraints := object.get(object.get(grant, "args", {}), input.resource.id, {})
	is_object(constraints)
	every name, constraint in constraints {
		value := input.context.call.args[name]
		is_object(constraint)
		every bound, limit in constraint {
			holds(bound, limit, value)
		}
	}
}

holds(_, limit, _) if limit == null

holds("one_of", limit, value) if {
	is_array(limit)
	value in limit
}

holds("ge", limit, value) if {
	is_number(limit)
	is_number(value)
	value >= limit
}

holds("le", limit, value) if {
	is_number(limit)
	is_number(value)
	value <= limit
}

# --- model/call -------------------------------------------------------------------------------------

is_model if input.action.name == "model/call"

denied contains "no_permit" if {
	input.action.name == "model/call"
	not model_formed
}

denied contains "model" if {
	input.action.name == "model/call"
	not model_listed
}

model_formed if {
	names_only(input.resource.properties.tools)
	names_only(input.resource.properties.provider_tools)
	names_only(cfg.models.provider_tools)
}

names_only(names) if {
	is_array(names)
	every name in names {
		is_string(name)
	}
}

model_listed if {
	within(object.get(cfg.models, "names", null), input.resource.id)
	provider_listed
}

provider_listed if object.get(cfg.models, "providers", null) == null

provider_listed if {
	is_string(input.resource.properties.provider)
	within(cfg.models.providers, input.resource.properties.provider)
}

# What a model is not shown it does not plan; what the provider runs, nobody else can stop.
withheld := {
	"tools": [name | is_model; some name in input.resource.properties.tools; not within(object.get(grant, "tools", null), name)],
	"provider_tools": [name |
		is_model
		some name in input.resource.properties.provider_tools
		not name in cfg.models.provider_tools
	],
}

obliged contains obligation if {
	input.action.name == "model/call"
	count(withheld.tools) + count(withheld.provider_tools) > 0
	obligation := {"id": "withhold", "type": "withhold_tools", "properties": withheld}
}

# --- agent/invoke ---------------------------------------------------------------------------------

denied contains "grant_depth" if {
	input.action.name in {"agent/invoke", "tools/call"}
	not depth_granted
}

# --- tools/call: what denies ------------------------------------------------------------------------

is_call if input.action.name == "tools/call"

denied contains "no_permit" if {
	input.action.name == "tools/call"
	not call_formed
}

denied contains "grant_tool" if {
	input.action.name == "tools/call"
	not tool_granted
}

denied contains "grant_argument" if {
	input.action.name == "tools/call"
	not arguments_granted
}

denied contains "grant_data_class" if {
	input.action.name == "tools/call"
	not data_class_granted
}

denied contains "grant_sink" if {
	input.action.name == "tools/call"
	not sink_granted
}

denied contains "stale_plan" if {
	input.action.name == "tools/call"
	not plan_current
}

denied contains "unplanned" if {
	input.action.name == "tools/call"
	not exchanged
	not planned
}

# Code exchanged the arguments, tool or id that the model announced in this place. A person is shown the call.
asked contains "plan_changed" if {
	input.action.name == "tools/call"
	exchanged
	not exchange_bearable
}

exchange_bearable if standing == "covered"

exchange_bearable if {
	plan_formed
	effect in cfg.plan.unplanned_permitted
}

# What a side effect is based on is no longer so: nothing of the old plan may go on.
denied contains "data_changed" if {
	input.action.name == "tools/call"
	data_changed
}

data_changed if {
	count(input.context.call.changed) > 0
	not change_bearable
}

change_bearable if {
	plan_formed
	name := effect
	not name in cfg.plan.stale
}

plan_formed if {
	effects_only(cfg.plan.stale)
	effects_only(cfg.plan.unplanned_permitted)
}

effects_only(names) if {
	is_array(names)
	count({name | some name in names} - known_effects) == 0
}

denied contains "anonymous" if {
	input.action.name == "tools/call"
	not subject_sufficient
}

denied contains "not_attested" if {
	input.action.name == "tools/call"
	not attested_enough
}

denied contains "unprofiled" if {
	input.action.name == "tools/call"
	not profiled
	not unprofiled_bearable
}

denied contains "effect" if {
	effect_denies
	not forbidden # no approval helps then
}

denied contains "not_ordered" if {
	effect_denies
	not_ordered
}

denied contains "deviates" if {
	effect_denies
	standing == "deviates"
}

denied contains "forbidden" if {
	effect_denies
	forbidden
}

forbidden if standing == "forbidden"

denied contains "data_flow" if {
	input.action.name == "tools/call"
	not flow_bearable
}

denied contains bounds[name] if {
	input.action.name == "tools/call"
	some name in tripped
}

# The call, and the data that this policy is steered by, have the shape that the rules need.
call_formed if {
	effect
	sink
	is_object(input.context.call.args)
	plan_formed
	exchange_told
	bounds_formed
	standing
	is_boolean(backed)
	is_array(input.context.call.changed)
	is_array(reaches)
	every verdict in verdicts {
		verdict in {"permit", "ask", "deny"}
	}
	every reached in reaches {
		reached.effect in known_effects
		reached.sink in known_sinks
	}
	rate_formed
	budgets_formed
	notices_formed
	terms_formed
	is_array(redacted)
	every field in redacted {
		is_string(field)
	}
}

known_effects := {"compute", "read", "fetch", "write", "send", "pay", "delete", "admin"}

known_sinks := {"none", "internal", "external"}

effect := input.resource.properties.effect if input.resource.properties.effect in known_effects

sink := input.resource.properties.sink if input.resource.properties.sink in known_sinks

plan_current if input.context.plan == null # without a plan nothing is stale; see `unplanned`

plan_current if input.context.plan.stale == false

plan_current if {
	plan_formed
	name := effect
	not name in cfg.plan.stale
}

exchanged if input.context.plan.changed == true

exchange_told if input.context.plan == null # where there is no plan, none was changed

exchange_told if is_boolean(input.context.plan.changed)

planned if input.context.plan.planned == true

planned if {
	plan_formed
	effect in cfg.plan.unplanned_permitted
}

# A person is shown the call.
planned if {
	profiled
	"ask" in verdicts
}

planned if {
	not profiled
	unprofiled_verdict == "ask"
}

subject_sufficient if {
	is_string(input.subject.type)
	input.subject.type != "anonymous"
}

subject_sufficient if {
	effects_only(cfg.anonymous.effects)
	effect in cfg.anonymous.effects
	names_only(cfg.anonymous.data_classes)
	input.resource.properties.data_class in cfg.anonymous.data_classes
}

attested_enough if input.context.agent.attested == true

attested_enough if {
	effects_only(object.get(cfg, "attested", []))
	not proof_demanded
}

proof_demanded if effect in cfg.attested

profiled if input.resource.properties.profiled == true

# The bounds of `data.anomaly`, and the code of having reached one.
bounds := {
	"max_denials": "denial_streak",
	"max_streak": "denial_streak",
	"max_per_minute": "burst",
	"max_unplanned": "unplanned_streak",
	"max_tainted": "tainted_streak",
	"max_rotations": "rotations",
	"max_depth": "too_deep",
	"max_steps": "step_budget",
	"max_seconds": "time_budget",
}

only_denies := {"max_depth", "max_steps", "max_seconds"}

# Where the request says how much of it there is.
places := {
	"max_denials": ["history", "denials"],
	"max_streak": ["history", "streak"],
	"max_per_minute": ["history", "last_minute"],
	"max_unplanned": ["history", "unplanned"],
	"max_tainted": ["history", "tainted"],
	"max_rotations": ["history", "rotations"],
	"max_depth": ["delegation", "depth"],
	"max_steps": ["lease", "steps"],
	"max_seconds": ["lease", "seconds"],
}

# The bounds that are in force: has the request reached them?
reached := {name: is_reached |
	some name, [part, field] in places
	bound := cfg.anomaly[name]
	is_number(bound)
	amount := input.context[part][field]
	is_number(amount)
	is_reached := amount >= bound
}

tripped contains name if some name, true in reached

unbounded contains name if {
	some name, null in cfg.anomaly
	places[name]
}

bounds_formed if {
	is_object(cfg.anomaly)
	count(cfg.anomaly) == count(reached) + count(unbounded)
}

default rotation := []

rotation := [{"id": "data", "type": "rotate", "properties": {}}] if {
	is_call
	data_changed
}

default revocation := []

revocation := [{"id": "anomaly", "type": "revoke", "properties": {}}] if {
	is_call
	some name in tripped
	not name in only_denies
}

# --- tools/call: how the call compares with the mandate -------------------------------------------------

standing := input.context.call.mandate.standing if {
	input.context.call.mandate.standing in {"covered", "deviates", "forbidden", "outside", "none"}
}

backed := input.context.call.mandate.backed

not_ordered if standing in {"outside", "none"}

effect_denies if {
	input.action.name == "tools/call"
	profiled
	not effect_bearable
}

effect_asks if {
	input.action.name == "tools/call"
	profiled
	some name in effects
	effect_verdict(name) == "ask"
}

effect_bearable if {
	effect in effects
	every name in effects {
		effect_verdict(name) in {"permit", "ask"}
	}
}

# What the call does, and what it can set going.
effects contains effect

effects contains reached.effect if some reached in reaches

reaches := object.get(input.resource.properties, "reaches", [])

effect_verdict(name) := cfg.effects[name] if is_string(cfg.effects[name])

effect_verdict(name) := object.get(cfg.effects[name], member(cfg.effects[name]), "deny") if is_object(cfg.effects[name])

# The member of a row that decides this call.
member(row) := "backed" if {
	backed == true
	standing in {"deviates", "outside", "none"}
	"backed" in object.keys(row)
} else := standing

declassified if {
	is_array(cfg.declassify)
	standing in cfg.declassify
}

asked contains "effect" if effect_asks

asked contains "not_ordered" if {
	effect_asks
	not_ordered
}

asked contains "deviates" if {
	effect_asks
	standing == "deviates"
}

asked contains "forbidden" if {
	effect_asks
	standing == "forbidden"
}

# --- tools/call: what the tool's profile says of every call ---------------------------------------------------

verdicts contains input.resource.properties.verdict

verdicts contains reached.verdict if some reached in reaches

denied contains "verdict" if {
	input.action.name == "tools/call"
	"deny" in verdicts
}

asked contains "verdict" if {
	input.action.name == "tools/call"
	"ask" in verdicts
}

allowed if {
	is_call
	profiled
	input.resource.properties.verdict == "permit"
	not "ask" in verdicts
	standing in {"covered", "deviates", "outside", "none"}
	is_array(input.context.call.mandate.deviations)
	every deviation in input.context.call.mandate.deviations {
		deviation.code != "confirm"
	}
}

# --- tools/call: what was read, and where it would go ---------------------------------------------------

unprofiled_verdict := object.get(cfg.unprofiled, effect, object.get(cfg.unprofiled, "*", "deny"))

unprofiled_bearable if unprofiled_verdict in {"permit", "ask"}

flow_verdict(class, to) := object.get(
	object.get(cfg.data_flow, class, {}),
	to,
	object.get(object.get(cfg.data_flow, "*", {}), to, "deny"),
)

flow_bearable if {
	count(sinks) > 0
	every to in sinks {
		flow_bearable_to(to)
	}
}

# Where the arguments of this very call go, and where what it sets going sends.
sinks contains call_sink

sinks contains sink if not call_sink

call_sink := input.context.call.sink if is_string(input.context.call.sink)

sinks contains sink if count(reaches) > 0

sinks contains reached.sink if some reached in reaches

# What the acting agent can know something of; where that is not told, whatever anybody read.
classes := input.context.history.classes_held if input.context.history.classes_held != null

classes := input.context.history.classes_read if object.get(input.context.history, "classes_held", null) == null

flow_bearable_to("none")

flow_bearable_to(to) if {
	is_array(classes)
	every class in classes {
		is_string(class)
		flow_verdict(class, to) in {"permit", "ask"}
	}
}

asked contains "unprofiled" if {
	input.action.name == "tools/call"
	not profiled
	unprofiled_verdict == "ask"
}

asked contains "data_flow" if {
	input.action.name == "tools/call"
	not declassified
	some to in sinks
	to != "none"
	some class in classes
	flow_verdict(class, to) == "ask"
}

needed := object.union(object.get(cfg.approvals, "*", {}), object.get(cfg.approvals, effect, {}))

# The terms that an approval of this call must meet, all of them. A rule of your own adds terms, so it only tightens.
approval_terms contains object.union({"sources": [], "authenticated": true, "edits": "none"}, needed)

approval_needed := [{"id": id, "type": "require_approval", "properties": told} |
	some at, term in sort(approval_terms)
	id := trim_suffix(concat(":", ["approval", format_int(at, 10)]), ":0")
	told := {name: value |
		some name in ["expires_in", "approvers", "fallback", "asks"]
		value := term[name]
	}
]

terms_formed if {
	is_object(needed)
	every term in approval_terms {
		term_formed(term)
	}
}

term_formed(term) if {
	is_object(term)
	every name, _ in term {
		name in {"sources", "authenticated", "expires_in", "edits", "approvers", "fallback", "asks"}
	}
	names_only(object.get(term, "sources", []))
	is_boolean(object.get(term, "authenticated", false))
	object.get(term, "edits", "any") in {"none", "args", "any"}
	expiry := object.get(term, "expires_in", 1)
	whole(expiry)
	expiry > 0
}

approved if {
	is_string(input.context.call.args_digest)
	input.context.call.args_digest != ""
	input.context.approval.args_digest == input.context.call.args_digest
	every term in approval_terms {
		source_sufficient(term)
		approver_sufficient(term)
		approvers_sufficient(term)
		edit_sufficient(object.get(term, "edits", "any"))
	}
}

source_sufficient(term) if not "sources" in object.keys(term)

source_sufficient(term) if input.context.approval.source in term.sources

# Who approved: LangChain's own review says one name, ours all of them.
people contains person if {
	is_array(input.context.approval.approvers)
	some person in input.context.approval.approvers
	is_string(person)
}

approvers_sufficient(term) if not "approvers" in object.keys(term)

approvers_sufficient(term) if {
	enough := object.get(term.approvers, "min", 1)
	whole(enough)
	enough > 0
	count(people) >= enough
	people_apart(term.approvers)
	people_eligible(term)
}

people_apart(rule) if object.get(rule, "distinct_from_subject", false) == false

people_apart(_) if {
	subject := concat(":", [input.subject.type, input.subject.id])
	every person in people {
		person != subject
	}
}

people_eligible(term) if not "who" in object.keys(term.approvers)

people_eligible(term) if {
	others := object.get(object.get(term, "fallback", {}), "who", [])
	may := {who | some who in array.concat(term.approvers.who, others)}
	count(people - may) == 0
}

edit_sufficient(_) if object.get(input.context.approval, "edited_from", null) == null

edit_sufficient("any")

edit_sufficient("args") if input.context.approval.edited_from == input.resource.id

approver_sufficient(term) if object.get(term, "authenticated", false) == false

approver_sufficient(_) if input.context.approval.authenticated == true

# --- tools/call: what a permit obliges to -----------------------------------------------------------

rate_formed if {
	is_object(cfg.rates)
	not effect in object.keys(cfg.rates)
}

rate_formed if {
	whole(rate.window)
	rate.window > 0
	whole(rate.max)
	rate.max >= 0
}

rate := cfg.rates[effect]

# Beyond 2^53 - 1 engines disagree about what a number is.
whole(number) if {
	is_number(number)
	abs(number) <= 9007199254740991
	number == floor(number)
}

# Where `budget` and `notify` have rows for this call: under its effect, and under its tool.
rows_of contains ["effects", effect] if input.action.name == "tools/call"

rows_of contains ["tools", input.resource.id] if input.action.name == "tools/call"

# Data that was written before there were such tables has none.
budgets := object.get(cfg, "budget", {})

notify := object.get(cfg, "notify", {})

tables_formed(tables) if {
	is_object(tables)
	every kind, rows in tables {
		kind in {"effects", "tools"}
		is_object(rows)
	}
}

budgets_formed if {
	tables_formed(budgets)
	every at in rows_of {
		budget_formed(object.get(budgets, at, {"max": 0}))
	}
}

budget_formed(row) if {
	is_object(row)
	whole(row.max)
	row.max >= 0
	named(object.get(row, "counter", "own"))
	every member, _ in row {
		member in {"max", "counter"}
	}
}

notices_formed if {
	tables_formed(notify)
	every at in rows_of {
		row := object.get(notify, at, {})
		is_object(row)
		every verdict, channel in row {
			verdict in {"permit", "ask", "deny"}
			named(channel)
		}
	}
}

named(text) if {
	is_string(text)
	text != ""
}

obliged contains obligation if {
	some at in rows_of
	row := budgets[at[0]][at[1]]
	own := concat(":", [trim_suffix(at[0], "s"), at[1]])
	counter := object.get(row, "counter", own)
	obligation := {
		"id": concat(":", ["budget", own]),
		"type": "budget",
		"properties": {"counter": counter, "max": row.max},
	}
}

# One notification a channel, even if several rows name it.
notices(verdict) := sort({obligation |
	some at in rows_of
	channel := notify[at[0]][at[1]][verdict]
	named(channel)
	obligation := {"id": concat(":", ["notify", channel]), "type": "notify", "properties": {"channel": channel}}
})

redacted := object.get(cfg.redact, input.resource.id, [])

obliged contains obligation if {
	input.action.name == "tools/call"
	obligation := {
		"id": concat(":", ["rate", effect]),
		"type": "rate_limit",
		"properties": {"counter": concat(":", ["effect", effect]), "window": rate.window, "max": rate.max},
	}
}

obliged contains obligation if {
	input.action.name == "tools/call"
	count(redacted) > 0
	obligation := {"id": "redact", "type": "redact", "properties": {"fields": redacted}}
}
