"""What ``first up`` says when the model is live: where, with which key, and three things to try."""

from __future__ import annotations

import os

QUESTION = "Name three fruits."


def welcome(first: str, base_url: str, key: str, model: str) -> str:
    """The text; ``first`` is how the command was called."""
    return f"""
FIRST is running, and the model {model} is live.

  URL      {base_url}
  API key  {key}

Three things to try:

1. Ask from the command line.

   {first} chat "{QUESTION}"

2. Ask with curl.

   KEY={key}
   curl {base_url}/chat/completions -H "Authorization: Bearer $KEY" \\
     -H "Content-Type: application/json" \\
     -d '{{"model": "{model}", "stream": true, "messages": [{{"role": "user", "content": "{QUESTION}"}}]}}'

3. Ask from Python, after: pip install openai

   from openai import OpenAI

   key = "{key}"
   client = OpenAI(base_url="{base_url}", api_key=key)
   answer = client.chat.completions.create(
       model="{model}", messages=[{{"role": "user", "content": "{QUESTION}"}}]
   )
   print(answer.choices[0].message.content)

'{first} status' shows what runs, '{first} down' ends it."""


def warning() -> str:
    """What would make other commands look elsewhere; empty: nothing does."""
    if named := os.environ.get("FIRST_CONFIG"):
        return f"FIRST_CONFIG is set: other commands are about {named}, not about the demonstration. Unset it first."
    return ""
