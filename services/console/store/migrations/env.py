"""How Alembic runs the migrations: over the connection that it is given, in one transaction."""

from alembic import context

from prism.services.console.store.models import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    render_as_batch=True,  # SQLite can change hardly anything about a table in place
)
with context.begin_transaction():
    context.run_migrations()
