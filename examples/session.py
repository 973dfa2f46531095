"""A session decides the calls of an agent loop without LangGraph. Runs offline."""

from langchain_runtime_authz import Constraint, Grant, RuntimeAuthz, ToolProfile

PROFILES = {
    "read_file": ToolProfile(effect="read", sink="none", critical={"path": "object"}, trust="external"),
    "send_money": ToolProfile(effect="pay", critical={"recipient": "principal", "amount": "amount"}, intent=("pay",)),
}
GRANT = Grant(args={"send_money": {"amount": Constraint(le=100)}})
PLAN = [
    ("read_file", {"path": "bill.txt"}),
    ("send_money", {"recipient": "DE21", "amount": 98.7}),  # what alice ordered
    ("send_money", {"recipient": "DE21", "amount": 45}),  # more of it
    ("send_money", {"recipient": "DE21", "amount": 9870}),  # more than the grant allows
]


def carry_out(tool: str, args: dict[str, object]) -> str:
    """Stand in for your own tools."""
    return f"{tool}({args}) ran"


authz = RuntimeAuthz(profiles=PROFILES)
with authz.session(subject="alice", task="Pay 98.70 EUR to DE21.", grant=GRANT) as session:
    for tool, args in PLAN:
        decision = session.decide(tool, args)
        print(f"{tool} {args}: {decision.outcome} {decision.reasons} (decision {decision.decision_id})")
        if decision.outcome == "approval_required":  # your application asks alice, and she says yes
            print(*session.evidence(decision), sep="\n  ")
            decision = session.approve(decision)
            print("  approved:", decision.outcome)
        if decision.permit:
            session.observe(tool, args, carry_out(tool, args))
    print("alice changes the task; epoch:", session.correct("Stop, the bill was wrong"))
