"""What is done around an order, so that a renewal ends with those who use the certificate and not with a file.

Beside the first order of a name it is looked what that may meet (`first_order`). After a swap it is looked what is
really served (`served`), the files for other programs are brought up to date (`handing_out`), and the user's command is
run (`on_renew`). None of it can fail a renewal, and only the look, which has seconds, can delay one: the rest happens
in a task of its own, `run`.

What ought to be is derived from what there is, and not from having seen it change: files that are of another
certificate are made anew, and the command is owed for every certificate that it was not yet run for. So whatever a
crash, a full disk or another process did between is made good at the next start or reload.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

import attrs
import trio

from trioproxy.certs import on_renew
from trioproxy.certs.bundle import Leaf
from trioproxy.certs.first_order import FirstOrder
from trioproxy.certs.handing_out import HandingOut
from trioproxy.certs.served import Listening, look
from trioproxy.certs.status import CertificateStatus
from trioproxy.certs.store import Store, stem_of
from trioproxy.challenges import ChallengeBoard
from trioproxy.config.model import Site
from trioproxy.errors import StoreError
from trioproxy.snapshot import Cell

log = logging.getLogger("trioproxy.certs")

T = TypeVar("T")

AT_ONCE = 4
"""Commands that run at the same time, each for a name of its own."""

IN_ONE_GO = 8
"""Names whose files are written without a pause: each waits for the disk some ten times, and whoever stops the server
waits for all of them."""

AGAIN = 600.0
"""Seconds after which files that could not be written are tried again."""


@attrs.frozen
class Told:
    """For which certificate the command was run, and how that ended; kept on disk.

    Attributes:
        serial: The certificate's.
        error: Why it did not work, "" if it did.
    """

    serial: int
    error: str = ""


class Aftercare:
    """Looks after the certificates of one server, or of one command.

    Args:
        cell: Where the configuration is read.
        board: Where a token to try port 80 with is hung.
        store: Where bundles, files and notes are kept.
        listening: Where this process listens; None where it serves nothing.
    """

    def __init__(self, cell: Cell, board: ChallengeBoard, store: Store, listening: Listening | None) -> None:
        self._cell = cell
        self._store = store
        self._listening = listening
        self._first_order = None if listening is None else FirstOrder(board, listening)
        self._handing_out = HandingOut(store)
        self._wrong: dict[str, tuple[Site, Leaf, str]] = {}  # who is served something else, and what
        self._wanted: dict[str, Leaf] = {}  # whose files and command are to be seen to, the longest waiting first
        self._unwritten: dict[str, tuple[Leaf, str]] = {}  # whose files could not be written, and why
        self._owed: dict[str, Leaf] = {}  # whose command is to be run
        self._running: set[str] = set()
        self._woken = trio.Event()
        self._settled = trio.Event()

    # ---- before -------------------------------------------------------------------------------------

    async def beside_first(
        self, name: str, report: Callable[[str], None], order: Callable[[], Awaitable[T]], *, first: bool
    ) -> T:
        """Carry out `order`; where it is the first one of `name`, tell meanwhile what it may meet."""
        if self._first_order is None or not first:
            return await order()
        return await self._first_order.beside(self._cell.current.config, name, report, order)

    # ---- what is served -----------------------------------------------------------------------------

    async def swapped(self, site: Site, leaf: Leaf) -> str:
        """`leaf` has been published for `site`: look whether it is served, and see to the rest later.

        Returns:
            What new handshakes get, in words to stand behind what the certificate is.
        """
        self.want({site.name: leaf})
        return await self.check(site, leaf)

    async def check(self, site: Site, leaf: Leaf) -> str:
        """Look whether `leaf` is what `site` is served with; the words of `swapped`. Anything else is logged."""
        if self._listening is None:
            return "new handshakes already get it"
        self._wrong.pop(site.name, None)
        config = self._cell.current.config
        now = config.sites.get(site.name)
        if now is None or now.tls != site.tls:
            return "its site is configured otherwise meanwhile"
        await self._listening.settled()
        verdict = await look(config, now, leaf, self._listening.https())
        if verdict.result == "wrong":
            self._wrong[site.name] = now, leaf, f"its certificate is stored, but new handshakes {verdict.words}"
            log.error("%s  new handshakes %s: see what listens there, then reload trioproxy", site.name, verdict.words)
            return "stored, but it is not what is served"
        return f"new handshakes {verdict.words}"

    async def check_again(self) -> None:
        """Look anew at those who were served something else: that may be over."""
        for site, leaf, _ in list(self._wrong.values()):
            await self.check(site, leaf)

    # ---- files and command --------------------------------------------------------------------------

    def want(self, leaves: Mapping[str, Leaf]) -> None:
        """Have files and command seen to for these names, whose certificates these are."""
        self._wanted.update(leaves)
        self._wake()

    async def run(self) -> None:
        """Do what is to be done, until cancelled."""
        self._running.clear()
        async with trio.open_nursery() as nursery:
            while True:
                await self._begin_all(nursery)
                with trio.move_on_after(AGAIN if self._unwritten else math.inf):
                    await self._woken.wait()
                self._woken = trio.Event()

    async def settle(self) -> None:
        """Wait until all is done that was wanted; `run` must be running."""
        await self._settled.wait()

    def _wake(self) -> None:
        if self._settled.is_set():
            self._settled = trio.Event()
        self._woken.set()

    async def _begin_all(self, nursery: trio.Nursery) -> None:
        wanted = {name: leaf for name, (leaf, _) in self._unwritten.items()} | self._wanted
        names = list(wanted)
        for first in range(0, len(names), IN_ONE_GO):
            part = {name: wanted[name] for name in names[first : first + IN_ONE_GO]}
            await trio.to_thread.run_sync(self._bring_up_to_date, part)
            for name, leaf in part.items():
                if self._wanted.get(name) == leaf:
                    del self._wanted[name]
            self._begin_commands(nursery)
        self._begin_commands(nursery)
        if not self._running and not self._wanted:
            self._settled.set()

    def _begin_commands(self, nursery: trio.Nursery) -> None:
        free = AT_ONCE - len(self._running)
        for name in [name for name in self._owed if name not in self._running][:free]:
            self._running.add(name)
            nursery.start_soon(self._tell, name, self._owed[name])

    def _bring_up_to_date(self, wanted: Mapping[str, Leaf]) -> None:
        for name, leaf in wanted.items():
            before = self._unwritten.pop(name, None)
            try:
                if self._handing_out.serial(name) != leaf.serial:
                    self._handing_out.bring_up_to_date(name)
                told = self._read(name)
            except StoreError as exc:
                if before is None or before[1] != str(exc):
                    log.error("%s  its PEM files for other programs are not up to date: %s", name, exc)
                self._unwritten[name] = leaf, str(exc)
                continue
            if self._command and (told is None or told.serial != leaf.serial or told.error):
                self._owed[name] = leaf

    @property
    def _command(self) -> tuple[str, ...]:
        return self._cell.current.config.acme.on_renew

    async def _tell(self, name: str, leaf: Leaf) -> None:
        """Run the command for one name, and write down how it ended."""
        try:
            command, handed = self._command, self._handing_out.of(name)
            if command:
                # Written first: who is killed half-way has not told anybody, and does it again.
                await trio.to_thread.run_sync(self._note, name, Told(leaf.serial, "it did not come to its end"))
                error = await on_renew.run(name, command, on_renew.environment(name, leaf, handed), self._store.owner())
                await trio.to_thread.run_sync(self._note, name, Told(leaf.serial, error))
                if error:
                    log.error("%s  on_renew: %s; mend that, then reload trioproxy: it is run again", name, error)
                else:
                    log.info("%s  on_renew: %s has been run", name, command[0])
            if self._owed.get(name) == leaf:  # who is cancelled still owes it, and may go on
                del self._owed[name]
        except StoreError as exc:
            log.error("%s  on_renew: it cannot be kept whether it was run, so the next start runs it: %s", name, exc)
            self._owed.pop(name, None)
        finally:
            self._running.discard(name)
            self._wake()

    # ---- what it has to say -------------------------------------------------------------------------

    def annotated(self, status: CertificateStatus) -> CertificateStatus:
        """`status` with what is to be said from here."""
        name = status.name
        acme = status.source == "acme"
        wrong = [
            self._wrong[name][2] if name in self._wrong else "",
            f"its PEM files are not up to date: {self._unwritten[name][1]}" if name in self._unwritten else "",
            self._command_error(name) if acme else "",
        ]
        errors = [error for error in (status.error, *wrong) if error]
        return attrs.evolve(
            status,
            error="; ".join(errors),
            state="amiss" if any(wrong) and status.state in ("good", "due") else status.state,
            needs_a_person=status.needs_a_person or any(wrong),
            pem=str(self._handing_out.of(name).folder) if acme and self._handing_out.serial(name) is not None else "",
        )

    def _command_error(self, name: str) -> str:
        if not self._command or name in self._running:
            return ""
        try:
            told = self._read(name)
        except StoreError as exc:
            return str(exc)
        return f"on_renew failed: {told.error}" if told is not None and told.error else ""

    # ---- notes --------------------------------------------------------------------------------------

    def forget(self, name: str) -> None:
        """It is no longer ours to look after; files stay where they are."""
        for notes in (self._wrong, self._wanted, self._unwritten, self._owed):
            notes.pop(name, None)

    def _read(self, name: str) -> Told | None:
        return self._store.read_json(
            self._store.path / on_renew.NOTES / f"{stem_of(name)}.json",
            lambda values: Told(int(str(values["serial"]), 16), str(values["error"])),
        )

    def _note(self, name: str, told: Told) -> None:
        values = {"serial": f"{told.serial:x}", "error": told.error}
        self._store.write_json(self._store.path / on_renew.NOTES / f"{stem_of(name)}.json", values)
