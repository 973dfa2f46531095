# `classes`: class -> regions that it may be in. Where a tool puts things: `tools`, or an argument (`arguments`).
package runtime_authz

denied contains "residency" if {
	is_call
	bound_classes != set()
	some to in sinks
	to != "none"
	not region_suits
}

# Of what was read in this run and of what the tool itself handles.
bound_classes contains class if {
	some class in input.context.history.classes_read
	data.residency.classes[class]
}

bound_classes contains class if {
	class := input.resource.properties.data_class
	data.residency.classes[class]
}

region_suits if {
	region := destination_region
	every class in bound_classes {
		region in data.residency.classes[class]
	}
}

destination_region := data.residency.tools[input.resource.id]

destination_region := input.context.call.args[data.residency.arguments[input.resource.id]]
