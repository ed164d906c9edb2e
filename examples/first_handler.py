"""A first handler of your own: `scheduler worker --app examples.first_handler` serves it."""

from __future__ import annotations

from pydantic import BaseModel

from scheduler import Context, Reject, handler


class Mail(BaseModel):
    """What the payload of a `send_mail` task must look like."""

    to: str
    text: str = "Hello"


@handler("send_mail", timeout_ms=10_000)
async def send_mail(mail: Mail, ctx: Context) -> None:
    """Pretend to send one mail. To return is to succeed, to raise is to fail and be tried again."""
    if "@" not in mail.to:
        raise Reject("the address has no @")  # no retry can mend that: a dead letter at once
    ctx.log.info("mail sent", characters=len(mail.text))
