# Who asked for something does not approve it.
package runtime_authz

denied contains "own_approval" if {
	is_call
	some name in effects
	name in data.four_eyes.effects
	is_object(input.context.approval)
	not approver_other
}

approver_other if {
	is_string(input.context.approval.approver)
	not input.context.approval.approver in own_names
}

own_names := {
	input.subject.id,
	concat(":", [input.subject.type, input.subject.id]),
	"",
}
