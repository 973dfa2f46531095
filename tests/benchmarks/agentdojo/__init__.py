"""AgentDojo, replayed without a model: what each kind of authority stops, and what it costs."""
