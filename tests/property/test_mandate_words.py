"""What the words compiler reads stands in the text, in one clause, once; and a text beside it adds nothing."""

from hypothesis import given, settings
from hypothesis import strategies as st

from langchain_runtime_authz.facts.normal_forms import forms_of
from langchain_runtime_authz.facts.task import content_digest
from langchain_runtime_authz.mandate.languages import languages
from langchain_runtime_authz.mandate.model import Const, Step
from langchain_runtime_authz.mandate.words import compile_words
from langchain_runtime_authz.tool_profile import ToolProfile

PROFILES = {
    "pay": ToolProfile(effect="pay", critical={"recipient": "principal", "amount": "amount", "currency": "value"}, intent=("(pay|send) {recipient} {amount}", "pay {amount} to {recipient}")),
    "transfer": ToolProfile(effect="pay", critical={"source": "principal", "target": "principal", "amount": "amount"}, intent=("transfer {amount} from {source} to {target}",)),
    "send_email": ToolProfile(effect="send", critical={"to": "principal"}, text=("body",), intent=("(email|send) {to} [saying {body}]",)),
    "delete_file": ToolProfile(effect="delete", critical={"path": "object"}, intent=("delete {path}",)),
    "move_file": ToolProfile(effect="write", critical={"source": "object", "destination": "place"}, intent=("move {source} to {destination}",)),
    "remove_row": ToolProfile(effect="delete", critical={"table": "object", "row_id": "object"}, intent=("remove row {row_id} from {table}",)),
    "order": ToolProfile(effect="pay", critical={"item": "object", "quantity": "amount"}, intent=("order {quantity} {item}",)),
    "run": ToolProfile(effect="admin", critical={"command": "value"}, intent=("run",)),
    "fetch": ToolProfile(effect="fetch", critical={"url": "url"}, intent=("fetch",)),
    "cancel_plan": ToolProfile(effect="delete", critical={"plan_id": "object"}, intent=("cancel",)),
}  # fmt: skip
SIGNATURES = {
    "pay": {"required": ["recipient", "amount"], "properties": {"currency": {"default": "EUR"}}},
    "send_email": {"required": ["to"], "properties": {"to": {"type": "array"}}},
}
(ENGLISH,) = languages()
CODES = ENGLISH.data["currencies"]

someone = st.sampled_from(["Bob", "carol@x.org", "Bob Smith", "DE89 3704 0044 0532 0130 00", "dana", "O'Brien"])
address = st.sampled_from(["carol@x.org", "bob@y.com", "dana@z.net"])
money = st.sampled_from(["45 EUR", "$3000", "1,200.50 USD", "7 euros", "0.5 GBP"])
file = st.sampled_from(["a.txt", "/tmp/b.pdf", '"My Notes"', "web-1", "Report_3.md"])
orders = st.one_of(
    st.builds("{} {} {}".format, st.sampled_from(["Pay", "please send"]), someone, money),
    st.builds("Could you pay {} to {}".format, money, someone),
    st.builds("Transfer {} from {} to {}".format, money, someone, someone),
    st.builds("Pay {} {} and {} {}".format, someone, money, someone, money),
    st.builds("Delete {}, {} and {}".format, file, file, file),
    st.builds("Move {} to {}".format, file, file),
    st.builds("Remove row {} from the table {}".format, st.integers(1, 99), st.sampled_from(["users", "logs"])),
    st.builds("Order {} toner cartridges".format, st.integers(1, 99)),
    st.builds("Cancel {}".format, file),
    st.builds('Email {} and {} saying "{}"'.format, address, address, st.sampled_from(["hi", "see you"])),
)
pieces = st.one_of(
    orders, someone, money, file,
    st.sampled_from([*ENGLISH.verbs, *ENGLISH.closed, *ENGLISH.months, ":", ",", ".", "?", "!", "\n", '"', "'", "and", "then", "June 3 at 10:00", "https://x.org/a", "# x"]),
    st.text(max_size=8),
)  # fmt: skip
texts = st.lists(pieces, max_size=12).map(" ".join)


def steps(*said: str) -> tuple[Step, ...]:
    mandate = compile_words(said, PROFILES, SIGNATURES).mandate
    return mandate.steps if mandate else ()


def constants(step: Step) -> list[tuple[str, Const]]:
    return [(n, a) for n, a in step.args.items() if isinstance(a, Const)]


def backed(constant: Const, text: str) -> bool:
    """Return True if the text has the constant at its span: verbatim, in a normal form, or as a currency's name."""
    stretch = text[constant.said.start : constant.said.end]
    if isinstance(constant.value, tuple):
        return all(str(v) in stretch for v in constant.value)
    return CODES.get(stretch) == constant.value or bool(set(forms_of(stretch)) & set(forms_of(constant.value)))


def test_most_generated_orders_are_read():
    read: list[bool] = []

    @settings(max_examples=300, derandomize=True, database=None)
    @given(orders)
    def each(order):
        read.append(bool(steps(order)))

    each()
    assert sum(read) > len(read) / 2


@settings(max_examples=400)
@given(st.lists(st.one_of(orders, texts), min_size=1, max_size=3))
def test_each_value_stands_in_the_text_and_no_stretch_backs_two(said):
    by_digest = {content_digest(text): text for text in said}
    found = steps(*said)
    taken: dict[str, dict[tuple[str, int, int], str]] = {}
    for step in found:
        used = taken.setdefault(step.tool, {})
        for name, constant in constants(step):
            assert backed(constant, by_digest[constant.said.text]), (said, constant)
            others = [
                n for (digest, start, end), n in used.items()
                if digest == constant.said.text and start < constant.said.end and constant.said.start < end
            ]  # fmt: skip
            assert all(n == name for n in others), said  # a list shares what its items share, in the same role
            used[constant.said] = name


@settings(max_examples=300)
@given(orders, st.sampled_from([*sorted(ENGLISH.stops), "?", "don't", "isn’t"]), st.data())
def test_a_stop_word_anywhere_leaves_no_step(order, stop, data):
    at = data.draw(st.sampled_from([i for i in range(len(order) + 1) if order[i - 1 : i] in ("", " ") or order[i : i + 1] == ""]))
    if order[:at].count('"') % 2:
        return  # what is quoted is a value
    if stop == "?" and order.startswith("Could you") and at == len(order):
        return  # a polite order
    assert not steps(f"{order[:at]} {stop} {order[at:]}")


@settings(max_examples=300)
@given(orders, texts, st.sampled_from(["\n", ". ", "\n\n", "; "]), st.booleans())
def test_a_text_beside_an_order_backs_none_of_its_values(order, other, gap, before):
    alone = {(s.tool, *sorted((n, str(a.value)) for n, a in constants(s))) for s in steps(order)}
    whole = f"{other}{gap}{order}" if before else f"{order}{gap}{other}"
    start = len(other) + len(gap) if before else 0
    for step in steps(whole):
        spans = [a.said for _, a in constants(step)]
        inside = [start <= s.start and s.end <= start + len(order) for s in spans]
        assert all(inside) or not any(inside), whole
        if spans and all(inside):
            assert (step.tool, *sorted((n, str(a.value)) for n, a in constants(step))) in alone, whole


@settings(max_examples=300)
@given(st.lists(st.text(max_size=200), max_size=3), st.recursive(st.none() | st.text(max_size=5) | st.integers(), lambda s: st.lists(s, max_size=3) | st.dictionaries(st.sampled_from(["properties", "required", "enum", "anyOf", "type", "to"]), s, max_size=4), max_leaves=8))
def test_nothing_is_raised(said, schema):
    compile_words([*said, "Email bob@x.org saying hi"], PROFILES, {"send_email": schema})
    compile_words(["Email bob@x.org saying hi"], PROFILES, {"send_email": schema})
