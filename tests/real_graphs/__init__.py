"""Eight graphs as strangers write them, and what happens to their tasks and attacks when they are protected.

`python -m tests.real_graphs` plays them and prints the table. No line of the package stands inside an app.
"""
