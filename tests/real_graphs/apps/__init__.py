"""The apps. Nothing in them knows the package, the stubs or the scripted model."""
