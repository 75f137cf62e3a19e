# mypy: ignore-errors
# What it imports is installed in a folder of its own.
"""Google ADK's side: a custom agent that answers at once, without a model.

Where the caller streams, two pieces come as partial events, which are not stored; the whole answer is.
"""

from collections.abc import AsyncGenerator

from google.adk.agents import BaseAgent
from google.adk.agents.invocation_context import InvocationContext
from google.adk.agents.run_config import StreamingMode
from google.adk.events import Event
from google.genai import types


class Echo(BaseAgent):
    """``echo: <what was said>``."""

    async def _run_async_impl(self, ctx: InvocationContext) -> AsyncGenerator[Event, None]:
        said = "".join(part.text or "" for part in ctx.user_content.parts)
        answer = f"echo: {said}"
        if ctx.run_config is not None and ctx.run_config.streaming_mode == StreamingMode.SSE:
            for piece in (answer[:6], answer[6:]):
                yield self._event(ctx, piece, partial=True)
        yield self._event(ctx, answer)

    def _event(self, ctx: InvocationContext, text: str, *, partial: bool = False) -> Event:
        content = types.Content(role="model", parts=[types.Part(text=text)])
        return Event(invocation_id=ctx.invocation_id, author=self.name, content=content, partial=partial)


root_agent = Echo(name="echo")
