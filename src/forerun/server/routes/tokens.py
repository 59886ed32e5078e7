"""`/tokenize` and `/detokenize`."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter

from forerun.server.errors import refused
from forerun.server.prompts import encode_chat, encode_text
from forerun.server.routes.running import StrictRoute
from forerun.server.sampling import check_token_ids
from forerun.server.schemas.base import ERRORS
from forerun.server.schemas.tokens import DetokenizeReply, DetokenizeRequest, TokenizeReply, TokenizeRequest
from forerun.server.state import State

router = APIRouter(route_class=StrictRoute, tags=["Tokens"], responses={status: ERRORS[status] for status in (400, 401, 404, 413, 415)})


@router.post("/tokenize", summary="Text to token ids")
async def tokenize(body: TokenizeRequest, state: State) -> TokenizeReply:
    """As a prompt would be: with the tokens that the tokenizer or the template puts around it."""
    if body.model is not None:
        state.check_model(body.model)
    if (body.prompt is None) == (body.messages is None):
        raise refused("prompt", "give either prompt or messages")
    if body.prompt is not None:
        tokens = await encode_text(state, body.prompt, "prompt")
    else:
        tokens = await encode_chat(state, [message.model_dump(exclude_none=True) for message in body.messages or ()], None, {})
    texts = [state.token_texts.text_of(token_id) for token_id in tokens] if body.return_token_strs else None
    return TokenizeReply(count=len(tokens), max_model_len=state.async_llm.llm.max_model_len, tokens=tokens, token_strs=texts)


@router.post("/detokenize", summary="Token ids to text")
async def detokenize(body: DetokenizeRequest, state: State) -> DetokenizeReply:
    """The text, special tokens included."""
    if body.model is not None:
        state.check_model(body.model)
    tokenizer = state.async_llm.llm.tokenizer
    if tokenizer is None:
        raise refused("tokens", "the model came without a tokenizer")
    check_token_ids("tokens", body.tokens, state.vocab_size)
    return DetokenizeReply(prompt=str(await asyncio.to_thread(tokenizer.decode, body.tokens)))
