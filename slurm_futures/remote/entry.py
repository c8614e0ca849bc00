"""What ``python entry.py ...`` starts on the cluster; kept readable for any Python since 2.7.

RHEL 8's python3 is 3.6: its version is checked here, before anything newer is imported.
"""

import json
import os
import sys
import time


def report_old_python(folder, batch):  # type: ignore[no-untyped-def]
    """Say in the spool that this Python is too old to run a task."""
    env = os.environ
    task = int(env.get('SLURM_ARRAY_TASK_ID') or 0)
    job = env.get('SLURM_ARRAY_JOB_ID') or env['SLURM_JOB_ID']
    version = '%d.%d.%d' % sys.version_info[:3]
    header = {
        'batch': batch,
        'task': task,
        'job': job,
        'restart': int(env.get('SLURM_RESTART_COUNT') or 0),
        'host': env.get('SLURMD_NODENAME') or os.uname()[1],
        'failed': {'what': 'version', 'python': version, 'executable': sys.executable},
    }
    name = '%d.%d-%020d-%s-%d' % (batch, task, time.time() * 1e9, header['host'], os.getpid())
    with open(os.path.join(folder, 'tmp', name), 'w') as file:
        file.write(json.dumps(header) + '\n')
        file.flush()
        os.fsync(file.fileno())
    os.rename(os.path.join(folder, 'tmp', name), os.path.join(folder, 'new', name))


def main(role, folder, name, *more):  # type: ignore[no-untyped-def]
    """Run as the worker of a task or of the login node; return the exit status."""
    if sys.version_info < (3, 8):
        sys.stderr.write('slurm_futures needs Python 3.8 or newer here: %s\n' % sys.executable)
        if role == 'task':
            report_old_python(folder, int(name))
        return 1
    here = os.path.dirname(os.path.abspath(__file__))
    library = os.path.dirname(here)
    if library not in sys.path:
        sys.path.insert(0, library)
    package = __import__(os.path.basename(here) + '.' + role)
    worker = getattr(package, role)
    if role == 'task':
        return worker.main(folder, int(name))
    return worker.main(folder, name, *map(json.loads, more))


if __name__ == '__main__':
    if sys.path[0] == os.path.dirname(os.path.abspath(__file__)):
        sys.path.pop(0)
    status = main(*sys.argv[1:])  # type: ignore[no-untyped-call]
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # taking the interpreter down in good order takes 3 ms, and nobody looks
