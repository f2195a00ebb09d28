"""`report.html` of an experiment: one self-contained page, no script, no network, from the ledger alone.

It shows what happened and what it cost: headline, loss, where the time went, incidents, gates, accuracy, expert load,
checkpoints, a sample of text. Everything that comes from a record is escaped; a section without data says so.
"""

import logging
import re
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from html import escape
from pathlib import Path

from prunella.ledger import Ledger
from prunella.records import CheckResult, GateFabricRecord, GateNodeRecord, Health, Part, StageRecord, Verdict
from prunella.scratch import write_atomically
from prunella.tracking import plots
from prunella.tracking.history import Attempt, Checkpoint, History, read_history
from prunella.tracking.incidents import PHASES, IncidentStory, stories
from prunella.tracking.summary import Summary, summary
from prunella.tracking.time_accounting import TimeAccount, account

logger = logging.getLogger(__name__)

_CSS = """
:root{--ink:#1f2933;--muted:#616e7c;--line:#e4e7eb;--paper:#fff;--wash:#f7f8f9;--good:#0b6e4f;--bad:#b42318;--warn:#b45309}
*{box-sizing:border-box}
body{margin:0;background:var(--wash);color:var(--ink);font:15px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:1040px;margin:0 auto;padding:32px 24px 64px}
header h1{margin:0 0 2px;font-size:27px;letter-spacing:-.01em}
header p{margin:0;color:var(--muted)}
section{background:var(--paper);border:1px solid var(--line);border-radius:10px;padding:20px 24px;margin-top:20px}
h2{margin:0 0 4px;font-size:17px}
section>p{margin:0 0 12px;color:var(--muted);max-width:75ch}
svg{width:100%;height:auto;display:block}
svg text{font-family:inherit!important}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(122px,1fr));gap:10px;margin-top:20px}
.tile{background:var(--paper);border:1px solid var(--line);border-radius:10px;padding:12px 14px}
.tile b{display:block;font-size:17px;white-space:nowrap;font-variant-numeric:tabular-nums;letter-spacing:-.01em}
.tile span{color:var(--muted);font-size:13px}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:14px}
th{text-align:left;font-weight:600;color:var(--muted);font-size:12.5px;white-space:nowrap}
th,td{padding:6px 14px 6px 0;border-bottom:1px solid var(--line);vertical-align:top}
tr:last-child td{border-bottom:0}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
.chip{display:inline-block;border-radius:99px;padding:0 9px;font-size:12.5px;font-weight:600;
background:var(--wash);white-space:nowrap}
.complete,.healthy,.verified,.accepted{color:var(--good);background:#e6f4ef}
.failed,.unhealthy,.rejected{color:var(--bad);background:#fdecea}
.stopped,.unknown,.candidate,.running{color:var(--warn);background:#fdf3e3}
.swatch{display:inline-block;width:12px;height:12px;border-radius:3px;margin-right:8px;vertical-align:-1px;
border:1px solid #0001}
pre{white-space:pre-wrap;overflow-wrap:anywhere;background:var(--wash);border:1px solid var(--line);border-radius:8px;
padding:14px;margin:0;font:13px/1.5 ui-monospace,SFMono-Regular,Menlo,monospace}
.muted,.evidence{color:var(--muted);font-size:13px}
.evidence{overflow-wrap:anywhere;padding-top:0}
.incidents tr:first-child td:nth-child(-n+4){white-space:nowrap}
.incidents tbody tr:first-child td{border-bottom:0}
.incidents tbody:not(:last-child) tr:last-child td{border-bottom:1px solid var(--line)}
.marks{display:flex;flex-wrap:wrap;gap:4px 6px;margin-top:4px}
.marks span{background:var(--wash);border:1px solid var(--line);border-radius:6px;padding:0 7px;font-size:12px}
details,.marks+div,.marks+details+div{margin-top:6px}
summary{cursor:pointer}
details pre{margin-top:6px}
@media print{body{background:#fff}section,.tile{break-inside:avoid}}
"""


def write_report(ledger: Ledger, path: Path, *, now_ns: int | None = None) -> None:
    """Write the page of the ledger's experiment; `now_ns` (default: now) ends the account of a run that is open.

    Raises:
        ConfigError: there is no such experiment.
        DigestMismatch: a record is damaged.
    """
    history = read_history(ledger)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, page(history, now_ns=time.time_ns() if now_ns is None else now_ns))
    logger.info("report_written path=%s", path)


def page(history: History, *, now_ns: int) -> str:
    """The whole page."""
    found, spent, told = summary(history, mlflow_run_id=None, now_ns=now_ns), account(history, now_ns=now_ns), stories(history)
    name = escape(history.experiment.name)
    body = "\n".join(
        (
            _header(history, found),
            _tiles(history, found),
            _section("Loss", _LOSS_TEXT, plots.loss_curve(history, told)),
            _section("Where the time went", _TIME_TEXT, _time(spent)),
            _section("Incidents", _INCIDENT_TEXT, _incidents(told)),
            _section("Gates", "Every node is checked before every attempt; unknown is never healthy.", _gates(history)),
            _section("Accuracy", _ACCURACY_TEXT, _accuracy(history)),
            _section(
                "Expert load", "Tokens of each expert over the mean of its layer; 1 is balanced.", plots.expert_load(history)
            ),
            _section(
                "Checkpoints", "Only verified checkpoints are resumed from, evaluated or promoted.", _checkpoints(history)
            ),
            _section("A sample of its text", "Written by the newest evaluated checkpoint.", _sample(history)),
            _section("What it depends on", "", _provenance(history)),
        )
    )
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{name}: report</title>'
        f'<meta name="viewport" content="width=device-width,initial-scale=1"><style>{_CSS}</style></head>\n'
        f"<body><main>\n{body}\n</main></body></html>\n"
    )


_LOSS_TEXT = (
    "The line is what the weights are made of. Grey dots were executed and thrown away; numbers refer to the incidents below."
)
_TIME_TEXT = (
    "Every second has one name, and they add up to the elapsed time. ETTR is productive time over time that was not paused."
)
_INCIDENT_TEXT = (
    "What went wrong, who is to blame, what was decided, and how long it took, from the last moment all was known to be well "
    "to the end of the first new useful step, pauses left out."
)
_ACCURACY_TEXT = "After each promotion, with 95% intervals; the dashed line is chance."


# ------------------------------------------------------------------------------------------------ pieces


def _section(title: str, text: str, content: str | None) -> str:
    lead = f"<p>{text}</p>" if text else ""
    return f"<section><h2>{title}</h2>{lead}{content or '<p>Nothing to show yet.</p>'}</section>"


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are HTML already. A column whose name starts with # holds numbers."""
    kinds = [' class="n"' if name.startswith("#") else "" for name in columns]
    head = "".join(f"<th{kind}>{name.removeprefix('#')}</th>" for kind, name in zip(kinds, columns, strict=True))
    lines = ["".join(f"<td{kind}>{cell}</td>" for kind, cell in zip(kinds, row, strict=True)) for row in rows]
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _chip(word: str) -> str:
    return f'<span class="chip {escape(word)}">{escape(word)}</span>'


def _seconds(value_s: float) -> str:
    if value_s < 120:
        return f"{value_s:.1f} s"
    return f"{value_s / 60:.1f} min" if value_s < 7200 else f"{value_s / 3600:.1f} h"


def _when(at_ns: int) -> str:
    return datetime.fromtimestamp(at_ns / 1e9, tz=UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


# ------------------------------------------------------------------------------------------------ sections


def _header(history: History, found: Summary) -> str:
    record = history.experiment
    return (
        f"<header><h1>{escape(record.name)} {_chip(found.state)}</h1><p>opened {_when(record.opened_ns)}, recipe "
        f"{escape(history.config.recipe)}, seed {history.config.seed}</p></header>"
    )


def _tiles(history: History, found: Summary) -> str:
    first = "none" if found.first_loss_nats is None else f"{found.first_loss_nats:.2f}"
    last = "none" if found.final_loss_nats is None else f"{found.final_loss_nats:.2f}"
    lost = sum(not step.is_kept for step in history.steps)
    tiles = (
        (f"{found.segments} of {history.config.segments}", f"segments, {found.attempts} attempts"),
        (f"{found.steps:,}", f"steps kept, {lost:,} superseded"),
        (f"{found.tokens:,}", "tokens"),
        (f"{first} &rarr; {last}", "loss, nats a token"),
        (str(len(found.incidents)), "incidents"),
        (f"{found.ettr:.1%}", "ETTR"),
        (_seconds(found.time_s["elapsed"]), "elapsed"),
    )
    return '<div class="tiles">' + "".join(f'<div class="tile"><b>{b}</b><span>{s}</span></div>' for b, s in tiles) + "</div>"


def _time(spent: TimeAccount) -> str | None:
    strip = plots.timeline(spent)
    if strip is None:
        return None
    parts = sorted((part for part in Part if spent.parts_ns[part]), key=lambda part: -spent.parts_ns[part])
    rows = [
        (
            f'<span class="swatch" style="background:{plots.PART_COLOURS[part]}"></span>{part.value.replace("_", " ")}',
            _seconds(spent.parts_ns[part] / 1e9),
            f"{spent.parts_ns[part] / spent.elapsed_ns:.1%}",
        )
        for part in parts
    ]
    rows.append(("<b>elapsed</b>", f"<b>{_seconds(spent.elapsed_ns / 1e9)}</b>", "<b>100.0%</b>"))
    return strip + _table(("part", "#time", "#share"), rows)


def _incidents(told: tuple[IncidentStory, ...]) -> str:
    if not told:
        return "<p>None.</p>"
    names = ("#no.", "cause", "where", "culprit", "decision", "#lost steps", "#recovery")
    head = "".join(f'<th class="n">{name[1:]}</th>' if name[0] == "#" else f"<th>{name}</th>" for name in names)
    bodies = "".join(_incident(number, story, columns=len(names)) for number, story in enumerate(told, start=1))
    return f'<div class="scroll"><table class="incidents"><thead><tr>{head}</tr></thead>{bodies}</table></div>'


def _incident(number: int, story: IncidentStory, *, columns: int) -> str:
    """Two rows: what it was and what it cost, then how the time went and what was seen, across the whole table."""
    attempt = "" if story.attempt is None else f", attempt {story.attempt}"
    facts = (
        f'<td class="n">{number}</td><td><b>{escape(story.incident.diagnosis.cause.value)}</b></td>'
        f"<td>after step {story.after_step}<br>segment {story.segment}{attempt}</td>"
        f"<td>{escape(story.culprit or 'unknown')}</td>"
        f"<td>{escape(story.incident.action.value)}<br><span class='muted'>row {escape(story.incident.row)}</span></td>"
        f'<td class="n">{story.incident.lost_steps}</td>'
        f'<td class="n">{_seconds(sum(story.recovery_s.values())) if story.recovery_s else "none"}</td>'
    )
    seen = f'<td></td><td colspan="{columns - 1}" class="evidence">{_seen(story)}{_phases(story)}</td>'
    return f"<tbody><tr>{facts}</tr><tr>{seen}</tr></tbody>"


def _phases(story: IncidentStory) -> str:
    if not story.recovery_s:
        return ""
    told = ", ".join(f"{phase.replace('_', ' ')} {story.recovery_s[phase]:.2f} s" for phase in PHASES)
    return f"<div>recovery by phase: {told}</div>"


def _seen(story: IncidentStory) -> str:
    """Message, and the evidence that the message does not quote, short enough to read; the whole text folds out."""
    diagnosis = story.incident.diagnosis
    further = {
        key: value for key, value in diagnosis.evidence.items() if len(str(value)) < 16 or str(value) not in diagnosis.message
    }
    whole = [diagnosis.message, *(f"{key}: {value}" for key, value in further.items())]
    short = [shortened(text) for text in whole]
    marks = "".join(f"<span>{escape(text)}</span>" for text in short[1:])
    lines = f"{escape(short[0])}<div class='marks'>{marks}</div>"
    if short == whole:
        return lines
    text = escape("\n".join(whole))
    return f"{lines}<details><summary>the whole text</summary><pre>{text}</pre></details>"


_HEX = re.compile(r"\b[0-9a-f]{32,}\b")
_KEY = re.compile(r"\S+/([^/\s]+)")
#: Characters of a message or of a piece of evidence shown at first: about three lines of the page. Source: own choice 2026-11.
_SHOWN = 360


def shortened(text: str) -> str:
    """Digests to their first eight characters, keys to their last part, and no more than about three lines."""
    told = _KEY.sub(r"\1", _HEX.sub(lambda found: f"{found[0][:8]}...", text))
    return told if len(told) <= _SHOWN else f"{told[:_SHOWN].rsplit(' ', 1)[0]} ..."


def _gates(history: History) -> str | None:
    rows = [row for attempt in history.attempts for row in _gate_rows(attempt)]
    return _table(("segment", "attempt", "node", "health", "#checks", "not healthy"), rows) if rows else None


def _gate_rows(attempt: Attempt) -> Iterable[tuple[str, ...]]:
    where = (str(attempt.opened.segment), str(attempt.opened.attempt))
    for record in attempt.gate_nodes:
        if isinstance(record, GateNodeRecord):
            yield (*where, escape(record.node), _chip(record.health.value), str(len(record.checks)), _findings(record.checks))
        else:
            yield (*where, "?", _chip(Health.UNKNOWN.value), "0", _failure(record))
    fabric = attempt.gate_fabric
    if isinstance(fabric, GateFabricRecord):
        names = ", ".join(node.name for node in fabric.admitted)
        yield (
            *where,
            f"fabric of {escape(names)}",
            _chip(fabric.verdict.value),
            str(len(fabric.checks)),
            _findings(fabric.checks),
        )
    elif fabric is not None:
        yield (*where, "fabric", _chip(Health.UNKNOWN.value), "0", _failure(fabric))


def _findings(checks: tuple[CheckResult, ...]) -> str:
    bad = [check for check in checks if check.health is not Health.HEALTHY]
    return "<br>".join(
        escape(f"{check.name} on {check.node}: {check.value:g} {check.unit}, expected {check.reference}") for check in bad
    )


def _failure(record: StageRecord) -> str:
    return escape(record.failure.message) if record.failure is not None else ""


def _accuracy(history: History) -> str | None:
    rows = [
        (
            str(evaluation.checkpoint.step),
            f"{evaluation.heldout_loss_nats:.4f}",
            f"{evaluation.bits_per_byte:.4f}",
            escape(score.task),
            f"{score.acc:.3f}",
            f"{score.ci95[0]:.3f} to {score.ci95[-1]:.3f}",
            f"{score.chance:.3f}",
            str(score.n),
            escape(evaluation.regression) if evaluation.is_regression else "",
        )
        for evaluation in history.evaluations
        for score in evaluation.scores
    ]
    if not rows:
        return None
    columns = ("#step", "#held-out loss", "#bits a byte", "task", "#accuracy", "#95% interval", "#chance", "#n", "regression")
    return (plots.accuracy(history) or "") + _table(columns, rows)


def _checkpoints(history: History) -> str | None:
    rows = [_checkpoint_row(checkpoint) for checkpoint in history.checkpoints]
    return _table(("#step", "name", "verdict", "#size", "digest or reason"), rows) if rows else None


def _checkpoint_row(checkpoint: Checkpoint) -> tuple[str, ...]:
    manifest, validation = checkpoint.manifest, checkpoint.validation
    word = "verified" if checkpoint.is_verified else "rejected" if checkpoint.is_rejected else "candidate"
    marks = [mark for mark in ("promoted", "revoked", "pruned") if getattr(checkpoint, mark) is not None]
    detail = ""
    if validation is not None:
        digest = getattr(validation, "digest", None)
        detail = (
            f"<code>{escape(digest[:16])}</code>" if digest and validation.verdict is Verdict.ACCEPTED else _failure(validation)
        )
    size_mb = sum(entry.size_bytes for entry in manifest.files) / 1e6
    verdict = _chip(word) + "".join(f" {_chip(mark)}" for mark in marks)
    return (str(manifest.step), escape(manifest.name), verdict, f"{size_mb:.2f} MB", detail)


def _sample(history: History) -> str | None:
    samples = [evaluation.sample for evaluation in history.evaluations if evaluation.sample]
    return f"<pre>{escape(samples[-1])}</pre>" if samples else None


def _provenance(history: History) -> str:
    record = history.experiment
    rows = [
        ("configuration", f"<code>{escape(record.config_digest[:16])}</code>"),
        ("data set", f"<code>{escape(str(getattr(history.dataset, 'fingerprint', 'none'))[:16])}</code>"),
        ("versions", escape(", ".join(f"{name} {version}" for name, version in sorted(record.versions.items())))),
        ("faults asked for", escape("; ".join(record.faults)) or "none"),
        ("faults fired", escape("; ".join(firing.spec for firing in history.firings)) or "none"),
        ("DAG runs", escape(", ".join(run.run_id for run, _ in history.runs)) or "none"),
    ]
    return _table(("what", "value"), rows)
