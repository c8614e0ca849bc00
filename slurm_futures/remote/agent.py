"""The agent: one process on the login node that the client talks to.

It answers requests and pushes events; it reports facts and decides nothing::

    client --requests--> Agent --threads--> file system (a hung one stalls a thread, not the loop)
           <--replies---   |  --commands-> sbatch, squeue, scancel, sacct
           <--events----   |  --pipes----> login workers
                           +--scandir----> new/ (messages of jobs)

A request has ``do`` and ``id``, its reply the same ``id``; an event has ``event``. Each is safe to
be sent twice, because the client repeats what it got no answer to after a reconnect. When the
stream closes or the client falls silent, the agent finishes what is in hand and exits.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import itertools
import os
import sys
import traceback
from typing import Any, AsyncIterator, Awaitable, Callable, Dict, List, Set

from . import library
from .files import append, in_thread, read, read_text
from .localqueue import LocalQueue
from .loginpool import Kind, Launch, LoginPool
from .news import News
from .processes import is_alive, process_identity
from .protocol import LARGE, Header
from .queues import Queue
from .slurm import SlurmQueue
from .spool import REVOKED, Spool, UnsafeFolder, secure_folder
from .stream import Stream

SILENCE = 60.0
"""Seconds without a word from the client after which the agent leaves."""

THREADS = 16
"""Threads for file-system calls; this many may hang before the others have to wait."""


class Agent:
    """Serves one client until it goes away."""

    def __init__(self, config: Header, files: Dict[str, bytes]) -> None:
        self._config = config
        self._files = files
        self._stream = Stream(os.dup(0), os.dup(1))
        self._owner = process_identity(os.getpid())
        self._tasks: Set[asyncio.Task[None]] = set()
        self._dropped: Set[int] = set()
        self._pools: Dict[str, LoginPool] = {}
        self._silent = 0.0
        self._unwanted = False
        self._closing = False

    async def run(self) -> None:
        """Prepare the spool, say hello, serve."""
        loop = asyncio.get_running_loop()
        loop.set_default_executor(concurrent.futures.ThreadPoolExecutor(THREADS))
        try:
            hello = await in_thread(self._prepare)
        except (OSError, UnsafeFolder) as error:
            text = f'it cannot use work_dir {self._config["work_dir"]}: {error}'
            await self._stream.send({'event': 'fatal', 'text': text})
            return
        self._news = News(self._spool, self._send, self._send_pieces)
        await self._stream.send(hello)
        scan = loop.create_task(self._news.send_forever())
        silence = loop.create_task(self._wait_for_silence())
        serve = loop.create_task(self._serve())
        tasks = {serve, silence, scan}
        ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self._news.finish()
        for task in ended:
            task.result()  # whatever stopped it

    def _prepare(self) -> Header:
        config = self._config
        work_dir = os.path.join(os.path.expanduser('~'), os.path.expanduser(config['work_dir']))
        if not os.path.isdir(work_dir):
            os.makedirs(work_dir, mode=0o700)
        root = os.path.join(work_dir, '.slurm_futures')
        secure_folder(root)
        self._spool = Spool(os.path.join(root, 'runs', config['run']))
        self._spool.create()
        self._library = os.path.join(root, 'lib')
        entry = library.install(self._library, self._files)
        launch = Launch(self._spool, entry, config['sys_path'], itertools.count(1))
        limits = {'call': config['login_workers'], 'command': sys.maxsize}
        for kind, limit in limits.items():
            self._pools[kind] = LoginPool(launch, limit, self._on_login_event)
        self._queue = self._make_queue(root, entry)
        return {
            'event': 'hello',
            'work_dir': work_dir,
            'folder': self._spool.folder,
            'entry': entry,
            'library': self._library,
            'python': list(sys.version_info[:3]),
            'executable': sys.executable,
            'host': os.uname().nodename,
        }

    def _make_queue(self, root: str, entry: str) -> Queue:
        if 'local' not in self._config:
            return SlurmQueue(self._config['slurm'], os.environ)
        host = os.uname().nodename
        home = self._spool.claim('queue', host)
        folder = os.path.join(root, 'queue', host)
        os.makedirs(folder, mode=0o700, exist_ok=True)
        return LocalQueue(folder, home, entry, self._config['local'], os.environ)

    async def _serve(self) -> None:
        while not self._closing:
            messages = await self._stream.receive()
            if not messages:
                return
            self._silent = 0.0
            for header, body in messages:
                self._spawn(self._answer(header, body))

    def _spawn(self, work: Awaitable[None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _answer(self, header: Header, body: bytes) -> None:
        handler: Callable[[Header, bytes], Awaitable[Any]] = getattr(self, 'on_' + header['do'])
        try:
            reply = await handler(header, body)
        except Exception as error:
            reply = {'error': f'{type(error).__name__}: {error}'}
        if reply is None:
            return
        body = reply.pop('body', b'')
        await self._send(dict(reply, id=header['id']), body)

    async def _send(self, header: Header, body: bytes = b'') -> None:
        try:
            await self._stream.send(header, body)
        except OSError:
            self._closing = True  # the client is gone; the next one reads the spool

    async def _send_pieces(self, header: Header, pieces: AsyncIterator[bytes]) -> None:
        try:
            await self._stream.send_pieces(header, pieces)
        except OSError:
            self._closing = True  # as for _send()

    async def _wait_for_silence(self) -> None:
        """Return when the client has been silent for long, counting only time spent listening."""
        while self._silent < SILENCE:
            await asyncio.sleep(1.0)
            self._silent += 1.0

    # ---- messages in the spool

    async def on_catch_up(self, _header: Header, _body: bytes) -> Header:
        """Answer when all that is in new/ now has been sent."""
        await self._news.catch_up()
        return {}

    async def on_ack(self, header: Header, _body: bytes) -> None:
        """Delete messages that the client has recorded."""
        await self._news.delete(header['names'])

    async def on_watch(self, header: Header, _body: bytes) -> None:
        """Look into new/ regularly, or rest."""
        self._news.watch(header['on'])

    # ---- calls on the login node

    async def on_call(self, header: Header, body: bytes) -> None:
        """Run a function or a command; what comes of it is told in events."""
        modules = header.get('modules')
        kind = Kind(header.get('python') or sys.executable, modules and self._folder(modules))
        command = dict(header, do=header['do_kind'])
        if len(body) > LARGE:
            name = f'call-{header["call"]}'
            command['body'] = await in_thread(self._spool.write, 'calls', name, [body])
            body = b''
        if header['call'] not in self._dropped:
            await self._pools[header['do_kind']].add(kind, command, body)

    async def _on_login_event(self, header: Header, body: bytes) -> None:
        if header['event'] == 'delivered':
            await self._news.send(header['file'])
        elif header['event'] == 'owned':
            await self._send(dict(header, alive=is_alive(header['owner'])))
        else:
            await self._send(header, body)

    async def on_drop(self, header: Header, _body: bytes) -> None:
        """Forget a login call that has not begun, end one that has."""
        # A large call may still be on its way, for smaller messages overtake it.
        self._dropped.add(header['call'])
        for pool in self._pools.values():
            if await pool.drop(header['call']):
                return

    async def on_got(self, header: Header, _body: bytes) -> None:
        """Let workers forget the outcomes of login calls, which the client has recorded."""
        for pool in self._pools.values():
            for call in header['calls']:
                await pool.confirm(call)

    async def on_owner(self, header: Header, _body: bytes) -> Header:
        """Say who has claimed a login call, and whether that process lives."""
        name = f'call-{header["call"]}'
        owner = await in_thread(self._spool.owner, name)
        lease = await in_thread(read_text, self._spool.path('claims', name + '.lease'))
        return {'owner': owner, 'alive': is_alive(owner) if owner else False, 'lease': lease}

    # ---- jobs

    async def on_submit(self, header: Header, body: bytes) -> Header:
        """Write a batch and submit it, unless an agent before this one has begun to do so."""
        claim = f'submit-{header["token"]}'
        try:
            owner = await in_thread(self._spool.claim, claim, self._owner)
            if owner != self._owner:
                return {'kind': 'claimed', 'owner': owner, 'alive': is_alive(owner)}
            path = await in_thread(self._write_batch, header, body)
        except OSError as error:
            where = '' if error.filename or not error.errno else f': {self._spool.folder}'
            return {'kind': 'refused', 'stderr': f'{error}{where}'}
        self._news.expect()
        options, own = header['options'], header.get('script_options', [])
        reply = _facts(await self._queue.submit(path, options, header['cwd'], own))
        if self._unwanted and reply['job_id']:  # the client has gone, with Ctrl-C
            await self._queue.cancel([reply['job_id']], reply['cluster'])
        elif reply['kind'] == 'submitted':
            submitted = {'batch': header['batch'], 'submitted': reply['job_id']}
            submitted.update(token=header['token'], cluster=reply['cluster'])
            try:
                await in_thread(self._spool.post, 'submitted', submitted)
            except OSError as error:  # the answer tells it too, unless this agent dies now
                print(f'cannot note the submission of {path}: {error}', file=sys.stderr)
        return reply

    def _write_batch(self, header: Header, body: bytes) -> str:
        cwd, spool = header['cwd'], self._spool
        if header['mkdir']:
            os.makedirs(cwd, exist_ok=True)
        for folder in [cwd, *(os.path.join(cwd, folder) for folder in header['folders'])]:
            if not os.path.isdir(folder):
                raise FileNotFoundError(f'there is no folder {folder}')
        script, calls = body[: header['script_size']], body[header['script_size'] :]
        batch = header['batch']
        spool.write('calls', f'{batch}.calls', [calls])
        with open(spool.path('calls', f'{batch}.cancel'), 'a'):
            pass
        return spool.write('calls', f'{header["token"]}.sh', [script])

    async def on_query(self, header: Header, _body: bytes) -> Header:
        """Ask the queue about all of the user's jobs."""
        return _facts(await self._queue.query(header['clusters']))

    async def on_history(self, header: Header, _body: bytes) -> Header:
        """Ask the queue about jobs that it does not list any more."""
        return _facts(await self._queue.history(header['jobs'], header['clusters']))

    async def on_lookup(self, header: Header, _body: bytes) -> Header:
        """Look for a job by the path of its script."""
        path = self._spool.path('calls', f'{header["token"]}.sh')
        return _facts(await self._queue.lookup(path, header['clusters']))

    async def on_limits(self, _header: Header, _body: bytes) -> Header:
        """Say what the cluster allows."""
        return _facts(await self._queue.limits())

    async def on_scancel(self, header: Header, _body: bytes) -> Header:
        """Cancel jobs and array tasks."""
        return _facts(await self._queue.cancel(header['jobs'], header['clusters']))

    async def on_revoke(self, header: Header, _body: bytes) -> Header:
        """Claim tasks so that they never run; say who owns each of them now."""
        return {'owners': await in_thread(self._revoke, header['tasks'])}

    def _revoke(self, topics: List[str]) -> List[str]:
        return [self._spool.claim(topic, REVOKED) for topic in topics]

    async def on_discard(self, header: Header, _body: bytes) -> Header:
        """Tell a batch's tasks which calls are not wanted (cancel), or to be ended (kill)."""
        path = self._spool.path('calls', f'{header["batch"]}.cancel')
        lines = ''.join(f'{header["how"]} {call}\n' for call in header['calls'])
        await in_thread(append, path, lines.encode())
        return {}

    # ---- the rest

    async def on_ping(self, _header: Header, _body: bytes) -> Header:
        """Show that this agent and the line to it are alive."""
        return {}

    async def on_tail(self, header: Header, _body: bytes) -> Header:
        """Read a log file from ``start`` to ``end``, of that the last ``limit`` bytes."""
        return await in_thread(_tail, header)

    def _folder(self, digest: str) -> str:
        """Return where the user's modules of a digest are."""
        return os.path.join(self._library, digest)

    async def on_lacking(self, header: Header, _body: bytes) -> Header:
        """Say which files of the user's modules are not there."""
        folder = self._folder(header['modules'])
        return {'names': await in_thread(library.missing, folder, header['sizes'])}

    async def on_put(self, header: Header, body: bytes) -> Header:
        """Write files of the user's modules; in the body they follow one another."""
        files, start = {}, 0
        for name, size in header['sizes'].items():
            files[name] = body[start : start + size]
            start += size
        folder = self._folder(header['modules'])
        await in_thread(library.put, folder, files, set(header['programs']))
        return {}

    async def on_python(self, header: Header, _body: bytes) -> Header:
        """Say which version another interpreter has."""
        code = "import sys; print('%d.%d.%d' % sys.version_info[:3])"
        process = await asyncio.create_subprocess_exec(
            header['python'],
            '-c',
            code,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate()
        return {'version': out.decode().strip(), 'stderr': err.decode(errors='replace')[-2000:]}

    async def on_close(self, header: Header, _body: bytes) -> Header:
        """End the login workers; remove the run's folder, but for logs that may be wanted."""
        self._unwanted = header['remove']
        for pool in self._pools.values():
            await pool.close()
        if header['remove']:
            await in_thread(self._spool.remove, header['keep_logs'])
        self._closing = True
        return {}


def _facts(reply: Any) -> Header:
    """Return a named tuple of the queue's as a reply."""
    facts: Header = reply._asdict()
    return facts


def _tail(header: Header) -> Header:
    try:
        size = os.path.getsize(header['path'])
    except FileNotFoundError:
        return {'missing': True}
    end = size if header['end'] is None else min(size, header['end'])
    start = max(header['start'], end - header['limit'])
    return {'body': read(header['path'], start, max(0, end - start))}


def main(config: Header, files: Dict[str, bytes]) -> None:
    """Run the agent in this process, which ends with it."""
    asyncio.run(_main(config, files))


async def _main(config: Header, files: Dict[str, bytes]) -> None:
    status = 1
    try:
        await Agent(config, files).run()
        status = 0
    except Exception:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)  # a thread may hang in a file-system call for ever
