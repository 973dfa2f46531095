"""An email assistant after LangChain's course: a mail that arrives starts it, and nobody types."""

from typing import Literal

from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.types import Command
from typing_extensions import TypedDict

from .mail_tools import (
    Done,
    RouterSchema,
    check_calendar_availability,
    format_email_markdown,
    schedule_meeting,
    write_email,
)


class StateInput(TypedDict):
    email_input: dict


class State(MessagesState):
    email_input: dict
    classification_decision: Literal["ignore", "respond", "notify"]


def build(model, folder, checkpointer=None, store=None):
    tools = [write_email, schedule_meeting, check_calendar_availability, Done]
    tools_by_name = {each.name: each for each in tools}
    llm_router = model.with_structured_output(RouterSchema)
    llm_with_tools = model.bind_tools(tools, tool_choice="any")

    def llm_call(state: State):
        system = {"role": "system", "content": "You answer emails."}
        return {"messages": [llm_with_tools.invoke([system, *state["messages"]])]}

    def tool_node(state: State):
        result = []
        for tool_call in state["messages"][-1].tool_calls:
            tool = tools_by_name[tool_call["name"]]
            observation = tool.invoke(tool_call["args"])
            result.append({"role": "tool", "content": observation, "tool_call_id": tool_call["id"]})
        return {"messages": result}

    def should_continue(state: State) -> Literal["tool_node", "__end__"]:
        for tool_call in state["messages"][-1].tool_calls:
            return END if tool_call["name"] == "Done" else "tool_node"
        return END

    agent_builder = StateGraph(State)
    agent_builder.add_node("llm_call", llm_call)
    agent_builder.add_node("tool_node", tool_node)
    agent_builder.add_edge(START, "llm_call")
    agent_builder.add_conditional_edges("llm_call", should_continue)
    agent_builder.add_edge("tool_node", "llm_call")
    agent = agent_builder.compile()

    def triage_router(state: State) -> Command[Literal["response_agent", "__end__"]]:
        email = format_email_markdown(state["email_input"])
        system = {"role": "system", "content": "You triage emails."}
        result = llm_router.invoke([system, {"role": "user", "content": email}])
        update = {"classification_decision": result.classification}
        if result.classification != "respond":
            return Command(goto=END, update=update)
        update["messages"] = [{"role": "user", "content": f"Respond to the email: {email}"}]
        return Command(goto="response_agent", update=update)

    overall_workflow = StateGraph(State, input_schema=StateInput)
    overall_workflow.add_node(triage_router)
    overall_workflow.add_node("response_agent", agent)
    overall_workflow.add_edge(START, "triage_router")
    return overall_workflow.compile(checkpointer=checkpointer)
