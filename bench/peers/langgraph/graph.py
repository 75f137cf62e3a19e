# mypy: ignore-errors
# What it imports is installed in a folder of its own.
"""LangGraph's side: one node that answers at once, without a model.

Where the caller streams, two pieces go out by the documented stream writer (``stream_mode: custom``).
"""

from langchain_core.messages import AIMessage
from langgraph.config import get_stream_writer
from langgraph.graph import START, MessagesState, StateGraph


async def echo(state: MessagesState) -> dict[str, list[AIMessage]]:
    answer = f"echo: {state['messages'][-1].content}"
    write = get_stream_writer()
    for piece in (answer[:6], answer[6:]):
        write(piece)
    return {"messages": [AIMessage(answer)]}


graph = StateGraph(MessagesState).add_node(echo).add_edge(START, "echo").compile()
