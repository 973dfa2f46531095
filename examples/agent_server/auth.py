"""Who calls, and which threads are whose. Replace `authenticate` by the check of your identity provider."""

from bank import authz, graph
from langgraph_sdk import Auth

auth = Auth()


@auth.authenticate
async def authenticate(authorization: str | None) -> Auth.types.MinimalUserDict:
    """Take `Bearer NAME` for NAME: for trying this on your own machine only."""
    name = (authorization or "").removeprefix("Bearer ")
    if not name:
        raise Auth.exceptions.HTTPException(status_code=401, detail="sign in")
    return {"identity": name, "is_authenticated": True}


@auth.on
async def own(ctx: Auth.types.AuthContext, value: dict) -> dict:
    """Let everybody see and use their own threads, runs and crons only."""
    owner = {"owner": ctx.user.identity}
    value.setdefault("metadata", {}).update(owner)
    return owner


@auth.on.threads.create_run
async def correct_at_once(ctx: Auth.types.AuthContext, value: Auth.types.on.threads.create_run.value) -> dict:
    """Let a second text stop what was planned before, also while it waits in the server's queue."""
    owner = {"owner": ctx.user.identity}
    value.setdefault("metadata", {}).update(owner)
    given = value["kwargs"].get("input")
    if given and value.get("multitask_strategy") == "enqueue" and value.get("thread_id"):
        texts = [str(m["content"]) for m in given.get("messages", ()) if isinstance(m, dict)]
        await authz.acorrect(str(value["thread_id"]), "\n".join(texts), graph=graph)
    return owner
