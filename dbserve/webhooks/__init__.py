"""Webhooks: what is told (`occurrences`), to whom (`addresses`), under which signature (`signing`), how often
(`schedule`): pure. One message over the wire (`posting`), and the loop that sees to all of them (`deliverer`)."""
