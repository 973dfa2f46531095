package runtime_authz

# Above the amount, two people approve, and neither is the subject. What is not a number counts as above it.
asked contains "four_eyes" if large_payment

approval_terms contains {"approvers": {"min": 2, "distinct_from_subject": true}, "expires_in": 3600} if large_payment

large_payment if {
	is_call
	"pay" in effects
	not small_payment
}

small_payment if {
	is_number(input.context.call.args.amount)
	input.context.call.args.amount <= data.bank.four_eyes_above
}

# `RuntimeAuthz(zone="Europe/Berlin")` gives the local time. Without it, or with another zone, nobody pays.
denied contains "after_hours" if {
	is_call
	"pay" in effects
	not working_hours
}

working_hours if {
	input.context.local.zone == data.bank.hours.zone
	input.context.local.hour >= data.bank.hours.from
	input.context.local.hour < data.bank.hours.to
}

# Who has no tenant has none of the withheld tools.
denied contains "tenant_tool" if {
	is_call
	some tools in data.bank.withheld
	input.resource.id in tools
	not tenant_has
}

tenant_has if {
	is_string(input.subject.properties.tenant)
	not input.resource.id in object.get(data.bank.withheld, input.subject.properties.tenant, [])
}
