"""An email assistant with human-in-the-loop and memory, after LangChain's course: it asks in Agent Inbox's shape."""

from typing import Literal

from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.store.base import BaseStore
from langgraph.types import Command, interrupt
from pydantic import BaseModel

from .mail_tools import (
    Done,
    Question,
    RouterSchema,
    check_calendar_availability,
    format_email_markdown,
    open_link,
    schedule_meeting,
    write_email,
)

HITL_TOOLS = ["write_email", "schedule_meeting", "Question"]


class State(MessagesState):
    email_input: dict
    classification_decision: str


class StateInput(BaseModel):
    email_input: dict


class UserPreferences(BaseModel):
    """Updated user preferences based on user's feedback."""

    user_preferences: str


def get_memory(store, namespace, default_content):
    user_preferences = store.get(namespace, "user_preferences")
    if user_preferences:
        return user_preferences.value["text"]
    store.put(namespace, "user_preferences", {"text": default_content})
    return default_content


def build(model, folder, checkpointer=None, store=None):
    tools = [write_email, schedule_meeting, check_calendar_availability, open_link, Question, Done]
    tools_by_name = {each.name: each for each in tools}
    llm_router = model.with_structured_output(RouterSchema)
    llm_with_tools = model.bind_tools(tools, tool_choice="required")

    def update_memory(store, namespace, messages):
        user_preferences = store.get(namespace, "user_preferences")
        llm = model.with_structured_output(UserPreferences)
        current = user_preferences.value["text"] if user_preferences else ""
        prompt = f"Update the user's preferences.\nCurrent: {current}"
        result = llm.invoke([{"role": "system", "content": prompt}, *messages])
        store.put(namespace, "user_preferences", {"text": result.user_preferences})

    def triage_router(
        state: State, store: BaseStore
    ) -> Command[Literal["triage_interrupt_handler", "response_agent", "__end__"]]:
        instructions = get_memory(store, ("email_assistant", "triage_preferences"), "Answer direct questions.")
        email = format_email_markdown(state["email_input"])
        system = {"role": "system", "content": f"You triage emails. {instructions}"}
        result = llm_router.invoke([system, {"role": "user", "content": email}])
        update = {"classification_decision": result.classification}
        if result.classification == "respond":
            update["messages"] = [{"role": "user", "content": f"Respond to the email: {email}"}]
            return Command(goto="response_agent", update=update)
        return Command(goto="triage_interrupt_handler" if result.classification == "notify" else END, update=update)

    def triage_interrupt_handler(state: State, store: BaseStore) -> Command[Literal["response_agent", "__end__"]]:
        email = format_email_markdown(state["email_input"])
        request = {
            "action_request": {"action": f"Email Assistant: {state['classification_decision']}", "args": {}},
            "config": {"allow_ignore": True, "allow_respond": True, "allow_edit": False, "allow_accept": False},
            "description": email,
        }
        response = interrupt([request])[0]
        if response["type"] == "response":
            content = f"User wants to reply to the email. Use this feedback: {response['args']}"
            messages = [{"role": "user", "content": f"{email}\n{content}"}]
            update_memory(store, ("email_assistant", "triage_preferences"), messages)
            return Command(goto="response_agent", update={"messages": messages})
        return Command(goto=END)

    def llm_call(state: State, store: BaseStore):
        cal = get_memory(store, ("email_assistant", "cal_preferences"), "30 minutes are preferred.")
        style = get_memory(store, ("email_assistant", "response_preferences"), "Be brief.")
        system = {"role": "system", "content": f"You answer emails. {cal} {style}"}
        return {"messages": [llm_with_tools.invoke([system, *state["messages"]])]}

    def interrupt_handler(state: State, store: BaseStore) -> Command[Literal["llm_call", "__end__"]]:
        result = []
        goto = "llm_call"
        for tool_call in state["messages"][-1].tool_calls:
            tool = tools_by_name[tool_call["name"]]
            if tool_call["name"] not in HITL_TOOLS:
                observation = tool.invoke(tool_call["args"])
                result.append({"role": "tool", "content": observation, "tool_call_id": tool_call["id"]})
                continue
            request = {
                "action_request": {"action": tool_call["name"], "args": tool_call["args"]},
                "config": {"allow_ignore": True, "allow_respond": True, "allow_edit": True, "allow_accept": True},
                "description": format_email_markdown(state["email_input"]),
            }
            response = interrupt([request])[0]
            if response["type"] == "accept":
                observation = tool.invoke(tool_call["args"])
                result.append({"role": "tool", "content": observation, "tool_call_id": tool_call["id"]})
            elif response["type"] == "edit":
                edited_args = response["args"]["args"]
                ai_message = state["messages"][-1]
                others = [call for call in ai_message.tool_calls if call["id"] != tool_call["id"]]
                edited = {"type": "tool_call", "name": tool_call["name"], "args": edited_args, "id": tool_call["id"]}
                result.append(ai_message.model_copy(update={"tool_calls": [*others, edited]}))
                observation = tool.invoke(edited_args)
                result.append({"role": "tool", "content": observation, "tool_call_id": tool_call["id"]})
                note = f"User edited the call. Before: {tool_call['args']}. After: {edited_args}."
                namespace = "cal_preferences" if tool_call["name"] == "schedule_meeting" else "response_preferences"
                update_memory(store, ("email_assistant", namespace), [{"role": "user", "content": note}])
            elif response["type"] == "ignore":
                content = "User ignored this. Ignore this email and end the workflow."
                result.append({"role": "tool", "content": content, "tool_call_id": tool_call["id"]})
                goto = END
            elif response["type"] == "response":
                content = f"User gave feedback, incorporate it: {response['args']}"
                result.append({"role": "tool", "content": content, "tool_call_id": tool_call["id"]})
            else:
                raise ValueError(f"Invalid response: {response}")
        return Command(goto=goto, update={"messages": result})

    def should_continue(state: State) -> Literal["interrupt_handler", "__end__"]:
        for tool_call in state["messages"][-1].tool_calls:
            return END if tool_call["name"] == "Done" else "interrupt_handler"
        return END

    agent_builder = StateGraph(State)
    agent_builder.add_node("llm_call", llm_call)
    agent_builder.add_node("interrupt_handler", interrupt_handler)
    agent_builder.add_edge(START, "llm_call")
    agent_builder.add_conditional_edges("llm_call", should_continue)
    response_agent = agent_builder.compile()

    workflow = StateGraph(State, input_schema=StateInput)
    workflow.add_node(triage_router)
    workflow.add_node(triage_interrupt_handler)
    workflow.add_node("response_agent", response_agent)
    workflow.add_edge(START, "triage_router")
    return workflow.compile(checkpointer=checkpointer, store=store)
