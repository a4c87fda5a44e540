"""A closed teacher over HTTP: paid by the token, limited by the minute, and away at times. (No torch.)

::

    async def main() -> None:
        settings = TeacherConfig(api="openai", url="https://...", model="...", input_price=0.3, output_price=2.5, cap=5)
        async with Teacher(settings, key=read_key("PRISM_TEACHER_KEY"), ledger=MemoryLedger(settings.cap)) as teacher:
            reply = await teacher.ask(question, images)

Nothing is sent before its cost is reserved: ``prism.clients.teacher.ledger`` says how.
"""
