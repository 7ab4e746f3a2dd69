"""Other protocols over engines that speak only chat completions: requests on their way in, answers on their way out.

Pure. A request becomes a chat request, or an InvalidRequest that names the part that cannot be said there; an answer is
read by one ``Translator`` for each attempt, event by event, at the rate at which it comes.
"""
