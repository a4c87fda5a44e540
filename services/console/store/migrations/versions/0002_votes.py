"""Votes, and the scope for them.

Revision ID: 0002
Revises: 0001
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

WITH_VOTE = "scope IN ('view', 'vote', 'operate', 'admin')"
WITHOUT = "scope IN ('view', 'operate', 'admin')"
SCOPED = ("tokens", "sessions", "codes")
NAME, BEFORE = "ck_{}_scope", "ck_{0}_ck_{0}_scope"
"""Of the constraint on scopes: the first migration's name went through the naming convention once more."""


def upgrade() -> None:
    _restrict(WITH_VOTE, BEFORE, NAME)
    op.create_table(
        "votes",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("who", sa.String(200), nullable=False),
        sa.Column("pair", sa.String(64), nullable=False),
        sa.Column("prompt", sa.String(64), nullable=False),
        sa.Column("source", sa.String(10), nullable=False),
        sa.Column("run", sa.String(300), nullable=False),
        sa.Column("question", sa.Text(), nullable=False),
        sa.Column("gold", sa.Text()),
        sa.Column("images", sa.JSON(), nullable=False),
        sa.Column("left", sa.JSON(), nullable=False),
        sa.Column("right", sa.JSON(), nullable=False),
        sa.Column("drawn", sa.Float(), nullable=False),
        sa.Column("choice", sa.String(10)),
        sa.Column("voted", sa.Float()),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_votes")),
        sa.UniqueConstraint("who", "pair", name=op.f("uq_votes_who")),
        sa.CheckConstraint("choice IN ('left', 'right', 'tie', 'bad')", name=op.f("ck_votes_choice")),
    )


def downgrade() -> None:
    op.drop_table("votes")
    for table in SCOPED:
        op.execute(f"UPDATE {table} SET scope = 'view' WHERE scope = 'vote'")  # noqa: S608
    _restrict(WITHOUT, NAME, BEFORE)


def _restrict(scopes: str, old: str, new: str) -> None:
    """Let the scope of tokens, sessions and codes be one of ``scopes``."""
    if op.get_bind().dialect.name != "sqlite":
        for table in SCOPED:
            op.drop_constraint(op.f(old.format(table)), table, type_="check")
            op.create_check_constraint(op.f(new.format(table)), table, scopes)
        return
    # SQLite makes each table anew, and dropping tokens takes the sessions along that were opened with them.
    connection = op.get_bind()
    sessions = sa.Table("sessions", sa.MetaData(), autoload_with=connection)
    open_ones = [dict(row) for row in connection.execute(sa.select(sessions)).mappings()]
    connection.execute(sa.delete(sessions))
    for table in SCOPED:
        with op.batch_alter_table(table, recreate="always") as batch:
            batch.drop_constraint(op.f(old.format(table)), type_="check")
            batch.create_check_constraint(op.f(new.format(table)), sa.text(scopes))
    if open_ones:
        connection.execute(sa.insert(sessions), open_ones)
