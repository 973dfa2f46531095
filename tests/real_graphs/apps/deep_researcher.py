"""A deep researcher: a supervisor starts researchers, and each tool call runs in a `try` that catches everything."""

import asyncio
import operator
from typing import Annotated, Literal

import httpx
from langchain_core.messages import HumanMessage, SystemMessage, ToolMessage, get_buffer_string
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import tool
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.types import Command
from pydantic import BaseModel, Field
from typing_extensions import TypedDict

MAX_ITERATIONS = 6


class ConductResearch(BaseModel):
    """Call this tool to conduct research on a specific topic."""

    research_topic: str = Field(description="The topic to research.")


class ResearchComplete(BaseModel):
    """Call this tool to indicate that the research is complete."""


class ResearchQuestion(BaseModel):
    """A research question and brief to guide research."""

    research_brief: str


@tool
async def web_search(queries: list[str]) -> str:
    """Search the web and return a summary of each result."""
    async with httpx.AsyncClient() as client:
        pages = await asyncio.gather(*(client.post("https://search.example/v1", json={"query": q}) for q in queries))
    return "\n\n".join(f"--- {query} ---\n{page.json()['result']}" for query, page in zip(queries, pages, strict=True))


@tool
async def fetch_page(url: str) -> str:
    """Fetch a web page."""
    async with httpx.AsyncClient() as client:
        return (await client.get(url)).json()["result"]


@tool(description="Strategic reflection tool for research planning")
def think_tool(reflection: str) -> str:
    """Record a reflection on the progress of the research."""
    return f"Reflection recorded: {reflection}"


class AgentState(MessagesState):
    supervisor_messages: Annotated[list, operator.add]
    research_brief: str
    notes: Annotated[list[str], operator.add]
    final_report: str


class SupervisorState(TypedDict):
    supervisor_messages: Annotated[list, operator.add]
    research_brief: str
    notes: Annotated[list[str], operator.add]


class ResearcherState(TypedDict):
    researcher_messages: Annotated[list, operator.add]
    tool_call_iterations: int
    research_topic: str
    compressed_research: str


class ResearcherOutputState(BaseModel):
    compressed_research: str


async def execute_tool_safely(tool, args, config):
    """Safely execute a tool with error handling."""
    try:
        return await tool.ainvoke(args, config)
    except Exception as e:
        return f"Error executing tool: {e!s}"


def build(model, folder, checkpointer=None, store=None):
    research_tools = [web_search, fetch_page, think_tool]
    tools_by_name = {each.name: each for each in research_tools}

    async def researcher(state: ResearcherState) -> Command[Literal["researcher_tools"]]:
        research_model = model.bind_tools(research_tools).with_retry(stop_after_attempt=2)
        messages = [SystemMessage("You are a researcher."), *state["researcher_messages"]]
        response = await research_model.ainvoke(messages)
        update = {"researcher_messages": [response], "tool_call_iterations": state.get("tool_call_iterations", 0) + 1}
        return Command(goto="researcher_tools", update=update)

    async def researcher_tools(
        state: ResearcherState, config: RunnableConfig
    ) -> Command[Literal["researcher", "compress_research"]]:
        most_recent_message = state["researcher_messages"][-1]
        if not most_recent_message.tool_calls:
            return Command(goto="compress_research")
        tool_calls = most_recent_message.tool_calls
        observations = await asyncio.gather(
            *(execute_tool_safely(tools_by_name[call["name"]], call["args"], config) for call in tool_calls)
        )
        outputs = [
            ToolMessage(content=observation, name=call["name"], tool_call_id=call["id"])
            for observation, call in zip(observations, tool_calls, strict=True)
        ]
        if state.get("tool_call_iterations", 0) >= MAX_ITERATIONS:
            return Command(goto="compress_research", update={"researcher_messages": outputs})
        return Command(goto="researcher", update={"researcher_messages": outputs})

    async def compress_research(state: ResearcherState):
        messages = [SystemMessage("Clean up the findings."), *state["researcher_messages"]]
        response = await model.ainvoke([*messages, HumanMessage("Clean up these findings.")])
        return {"compressed_research": response.text}

    researcher_builder = StateGraph(ResearcherState, output_schema=ResearcherOutputState)
    researcher_builder.add_node("researcher", researcher)
    researcher_builder.add_node("researcher_tools", researcher_tools)
    researcher_builder.add_node("compress_research", compress_research)
    researcher_builder.add_edge(START, "researcher")
    researcher_builder.add_edge("compress_research", END)
    researcher_subgraph = researcher_builder.compile()

    async def write_research_brief(state: AgentState) -> Command[Literal["research_supervisor"]]:
        research_model = model.with_structured_output(ResearchQuestion).with_retry(stop_after_attempt=2)
        prompt = f"Turn these messages into a research question:\n{get_buffer_string(state['messages'])}"
        response = await research_model.ainvoke([HumanMessage(prompt)])
        supervisor = [SystemMessage("You supervise the research."), HumanMessage(response.research_brief)]
        update = {"research_brief": response.research_brief, "supervisor_messages": supervisor}
        return Command(goto="research_supervisor", update=update)

    async def supervisor(state: SupervisorState) -> Command[Literal["supervisor_tools"]]:
        research_model = model.bind_tools([ConductResearch, ResearchComplete, think_tool])
        response = await research_model.ainvoke(state["supervisor_messages"])
        return Command(goto="supervisor_tools", update={"supervisor_messages": [response]})

    async def supervisor_tools(state: SupervisorState, config: RunnableConfig) -> Command[Literal["supervisor", "__end__"]]:
        most_recent_message = state["supervisor_messages"][-1]
        calls = most_recent_message.tool_calls
        notes = [each.text for each in state["supervisor_messages"] if isinstance(each, ToolMessage)]
        if not calls or any(call["name"] == "ResearchComplete" for call in calls):
            return Command(goto=END, update={"notes": notes})
        messages = []
        for call in (call for call in calls if call["name"] == "think_tool"):
            content = f"Reflection recorded: {call['args']['reflection']}"
            messages.append(ToolMessage(content=content, name="think_tool", tool_call_id=call["id"]))
        conduct = [call for call in calls if call["name"] == "ConductResearch"]
        try:
            research_tasks = [
                researcher_subgraph.ainvoke(
                    {
                        "researcher_messages": [HumanMessage(content=call["args"]["research_topic"])],
                        "research_topic": call["args"]["research_topic"],
                    },
                    config,
                )
                for call in conduct
            ]
            results = await asyncio.gather(*research_tasks)
            for observation, call in zip(results, conduct, strict=True):
                content = observation.get("compressed_research", "Error synthesizing research report")
                messages.append(ToolMessage(content=content, name=call["name"], tool_call_id=call["id"]))
        except Exception:
            return Command(goto=END, update={"notes": notes})
        return Command(goto="supervisor", update={"supervisor_messages": messages})

    supervisor_builder = StateGraph(SupervisorState)
    supervisor_builder.add_node("supervisor", supervisor)
    supervisor_builder.add_node("supervisor_tools", supervisor_tools)
    supervisor_builder.add_edge(START, "supervisor")

    async def final_report_generation(state: AgentState):
        findings = "\n".join(state.get("notes", []))
        prompt = f"Write the report on {state['research_brief']} from these findings:\n{findings}"
        report = await model.ainvoke([HumanMessage(prompt)])
        return {"final_report": report.text, "messages": [report]}

    builder = StateGraph(AgentState)
    builder.add_node("write_research_brief", write_research_brief)
    builder.add_node("research_supervisor", supervisor_builder.compile())
    builder.add_node("final_report_generation", final_report_generation)
    builder.add_edge(START, "write_research_brief")
    builder.add_edge("research_supervisor", "final_report_generation")
    builder.add_edge("final_report_generation", END)
    return builder.compile(checkpointer=checkpointer)
