# Every tool names the tenant in an argument (`tenancy.arguments`), or handles only what all may see.
package runtime_authz

denied contains "other_tenant" if {
	is_call
	not tenant_own
}

tenant_own if {
	is_string(input.subject.properties.tenant)
	input.subject.properties.tenant != ""
	argument := data.tenancy.arguments[input.resource.id]
	input.context.call.args[argument] == input.subject.properties.tenant
}

tenant_own if {
	not data.tenancy.arguments[input.resource.id]
	input.resource.properties.data_class in data.tenancy.shared_classes
}
