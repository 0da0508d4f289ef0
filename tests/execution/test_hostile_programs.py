"""Programs that mean harm, in every sandbox that holds on this machine.

`attack()` returns 'refused' where the system said no; what it did is looked at from outside wherever that is possible.
"""

import os
import platform
import signal
import socket
import time
from pathlib import Path

import pytest

from chatsft.execution import Sandbox
from tests.execution.sandboxes import STRONG, name, run

SETUP = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)

def attack():
    for attempt in attempts():
        try:
            result = attempt()
        except (OSError, ValueError, RuntimeError, AttributeError, ImportError):
            continue
        if not (isinstance(result, int) and result < 0):
            return f"worked: {result!r}"
    return "refused"
"""


@pytest.fixture(params=[pytest.param(sandbox, id=name(sandbox), marks=[] if sandbox.landlock else pytest.mark.slow) for sandbox in STRONG])
def sandbox(request) -> Sandbox:
    return request.param


def assert_refused(attempts: str, sandbox: Sandbox, **values) -> None:
    """Run the attempts (comma-separated lambdas); each of them has to raise or to return a negative number, as C functions do."""
    given = "".join(f"{key} = {value!r}\n" for key, value in values.items())
    verdict = run(f"{SETUP}{given}\ndef attempts():\n    return [{attempts}]", sandbox=sandbox)
    assert verdict.passed, (verdict.fault, verdict.output)


def test_this_machine_has_a_sandbox_that_holds():
    assert STRONG, "no sandbox holds on this machine: python -m chatsft.execution says why"


def test_an_attempt_that_works_would_be_noticed(sandbox):
    with pytest.raises(AssertionError, match="worked: 3"):
        assert_refused("lambda: 3", sandbox)


def test_a_file_elsewhere_is_neither_read_nor_changed_nor_deleted(sandbox, tmp_path):
    victim = tmp_path / "victim.txt"
    victim.write_text("precious")
    os.utime(victim, (1e9, 1e9))
    attempts = """
        lambda: open(victim).read(), lambda: open(victim, 'w'), lambda: open(victim, 'a'), lambda: os.remove(victim),
        lambda: os.truncate(victim, 0), lambda: os.open(victim, os.O_RDONLY | os.O_TRUNC), lambda: os.open(victim, 3 | os.O_TRUNC),
        lambda: os.rename(victim, 'mine'), lambda: os.link(victim, 'mine'), lambda: (open('mine', 'w').close(), os.replace('mine', victim)),
        lambda: os.chmod(victim, 0), lambda: os.chown(victim, 1, 1), lambda: os.utime(victim), lambda: os.setxattr(victim, 'user.a', b'b'),
        lambda: os.listdir(folder), lambda: os.rmdir(folder), lambda: open(folder + '/new', 'w'), lambda: os.mkdir(folder + '/new'),
        lambda: libc.unlink(victim.encode()), lambda: libc.open(victim.encode(), 0), lambda: libc.rmdir(folder.encode())
    """
    assert_refused(attempts, sandbox, victim=str(victim), folder=str(tmp_path))
    assert victim.read_text() == "precious"
    assert (victim.stat().st_mtime, oct(victim.stat().st_mode & 0o777)) == (1e9, "0o644")
    assert list(tmp_path.iterdir()) == [victim]


def test_python_and_its_packages_are_not_changed(sandbox):
    target = Path(os.__file__).parent / "this.py"
    before = target.read_bytes()
    attempts = """
        lambda: open(target, 'a'), lambda: os.remove(target), lambda: os.open(target, os.O_RDONLY | os.O_TRUNC),
        lambda: os.truncate(target, 0),        lambda: open(os.path.dirname(target) + '/new.py', 'w'),
        lambda: os.chmod(target, 0), lambda: os.utime(target)
    """
    assert_refused(attempts, sandbox, target=str(target))
    assert target.read_bytes() == before
    assert not (target.parent / "new.py").exists()


def test_links_lead_nowhere(sandbox, tmp_path):
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "link").symlink_to(tmp_path / "secret")
    attempts = """
        lambda: os.symlink(secret, 'link'), lambda: os.link(secret, 'link'), lambda: libc.symlink(secret.encode(), b'link'),
        lambda: open(link).read(), lambda: open('../' * 20 + secret[1:]).read(), lambda: open('/proc/self/root' + secret).read(),
        lambda: os.chroot('.'), lambda: libc.open_by_handle_at(-100, b'', 0), lambda: os.mkfifo('fifo'), lambda: os.mkdir('folder')
    """
    assert_refused(attempts, sandbox, secret=str(tmp_path / "secret"), link=str(tmp_path / "link"))


def test_the_parents_environment_and_memory_are_out_of_reach(sandbox, monkeypatch):
    monkeypatch.setenv("API_KEY", "do-not-tell")
    attempts = """
        lambda: open(f'/proc/{parent}/environ').read(), lambda: open(f'/proc/{parent}/mem', 'rb'),
        lambda: open(f'/proc/{os.getppid()}/mem', 'rb'), lambda: open('/proc/self/environ').read(),
        lambda: os.listdir('/proc'), lambda: os.listdir(f'/proc/{os.getppid()}/fd'),
        lambda: os.environ['API_KEY'] if 'API_KEY' in os.environ else -1,
        lambda: libc.ptrace(16, os.getppid(), 0, 0), lambda: libc.process_vm_readv(os.getppid(), 0, 0, 0, 0, 0),
        lambda: libc.syscall(438, libc.syscall(434, os.getppid(), 0), 0, 0)
    """
    assert_refused(attempts, sandbox, parent=os.getpid())


def test_the_network_is_out_of_reach(sandbox, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as local:
        local.bind(str(tmp_path / "socket"))
        local.listen()
        server.setblocking(False)
        local.setblocking(False)
        attempts = """
            lambda: __import__('socket').create_connection(('127.0.0.1', port)), lambda: libc.socket(2, 1, 0), lambda: libc.socket(1, 1, 0),
            lambda: libc.socket(1, 2, 0), lambda: libc.socket(16, 3, 0), lambda: libc.syscall(425, 1, bytes(120)),
            lambda: __import__('urllib.request').request.urlopen(f'http://127.0.0.1:{port}')
        """
        assert_refused(attempts, sandbox, port=server.getsockname()[1], path=str(tmp_path / "socket"))
        for listener in (server, local):
            with pytest.raises(BlockingIOError):
                listener.accept()


def test_no_process_or_thread_starts(sandbox):
    attempts = """
        os.fork, libc.fork, libc.vfork, lambda: os.posix_spawn('/bin/true', ['true'], {}), lambda: os.system('true'),
        lambda: __import__('subprocess').run(['true']), lambda: __import__('_thread').start_new_thread(print, ()),
        lambda: libc.syscall(435, bytes(88), 88), lambda: __import__('multiprocessing').Process(target=print).start(),
        lambda: os.popen('true'), lambda: os.execv('/bin/true', ['true']), lambda: libc.execl(b'/bin/true', b'true', None),
        lambda: -1 if libc.system(b'true') else 0
    """
    assert_refused(attempts, sandbox)


def test_a_fork_bomb_does_not_go_off(sandbox):
    code = """
import ctypes, os
libc = ctypes.CDLL(None)
def attack():
    for _ in range(10_000):
        if libc.fork() >= 0:
            return "forked"
    return "refused"
"""
    assert run(code, sandbox=sandbox).passed


def test_nothing_is_left_of_a_daemon(sandbox, tmp_path):
    code = f"""
import ctypes, os, time
libc = ctypes.CDLL(None)
def attack():
    if libc.fork() == 0:
        libc.setsid()
        if libc.fork() == 0:
            time.sleep(1)
            open({str(tmp_path / "alive")!r}, "w")
        os._exit(0)
    return "refused" if libc.setsid() < 0 and libc.setpgid(0, 0) < 0 else "detached"
"""
    verdict = run(code, sandbox=sandbox)
    assert verdict.passed, verdict
    time.sleep(1.2)
    assert not (tmp_path / "alive").exists()


def test_signals_reach_nobody_else(sandbox):
    received = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: received.append(number))
    attempts = """
        lambda: os.kill(parent, 10), lambda: os.kill(os.getppid(), 10), lambda: os.killpg(parent, 10), lambda: os.kill(0, 10),
        lambda: libc.syscall(234, parent, parent, 10), lambda: libc.syscall(200, parent, 10), lambda: libc.sigqueue(parent, 10, 0),
        lambda: __import__('fcntl').fcntl(1, 8, parent), lambda: __import__('fcntl').fcntl(1, 10, 10),
        lambda: libc.syscall(424, 3, 10, 0, 0), lambda: __import__('resource').prlimit(parent, 0, (1, 1)),
        lambda: os.sched_setaffinity(parent, [0]),
        lambda: os.setpriority(0, parent, 19)
    """
    try:
        assert_refused(attempts, sandbox, parent=os.getpid())
        assert received == []
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_c_gives_no_more_power_than_python(sandbox):
    attempts = """
        lambda: libc.mount(b'none', b'.', b'tmpfs', 0, 0), lambda: libc.unshare(0x10000000), lambda: libc.setuid(0),
        lambda: libc.setns(0, 0), lambda: libc.chroot(b'.'), lambda: libc.syscall(321, 0, 0, 0), lambda: libc.syscall(298, 0, 0, 0, 0, 0),
        lambda: libc.memfd_create(b'a', 0), lambda: libc.shmget(0, 4096, 0o1777), lambda: libc.prctl(4, 1), lambda: libc.prctl(1, 0),
        lambda: libc.capset(0, 0), lambda: libc.sethostname(b'a', 1), lambda: libc.syscall(444, 0, 0, 1),
        lambda: libc.syscall(250, 0, 0, 0), lambda: libc.personality(0), lambda: libc.userfaultfd(0),
        lambda: libc.reboot(0), lambda: libc.sched_setscheduler(0, 1, 0)
    """
    assert_refused(attempts, sandbox)


def test_limits_are_not_raised(sandbox):
    attempts = """
        lambda: resource.setrlimit(resource.RLIMIT_AS, (-1, -1)), lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 30, 1 << 30)),
        lambda: resource.setrlimit(resource.RLIMIT_CPU, (1000, 1000)), lambda: resource.setrlimit(resource.RLIMIT_NPROC, (10, 10))
    """
    assert_refused(attempts.replace("resource.", "__import__('resource')."), sandbox)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="machine code of x86_64")
@pytest.mark.parametrize("number", [2, 20], ids=["fork", "getpid"])
def test_the_32_bit_interface_ends_the_process(sandbox, number):
    code = f"""
import ctypes, mmap
def attack():
    memory = mmap.mmap(-1, 4096, prot=7)
    memory.write(b"\\xb8" + ({number}).to_bytes(4, "little") + b"\\xcd\\x80\\xc3")  # mov eax, number; int 0x80; ret
    return ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(memory)))()
"""
    assert run(code, "attack() is not None", sandbox).fault == "the code ended its process"


@pytest.mark.parametrize(
    "body",
    [
        "while True: pass",
        "import time; time.sleep(1000)",
        "9**9**9",
        "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65)); [signal.signal(n, signal.SIG_IGN) for n in (1, 2, 14, 15)]"
        "\n    while True:\n        try:\n            time.sleep(1)\n        except BaseException:\n            pass",
    ],
    ids=["loop", "sleep", "inside C", "ignoring signals"],
)
def test_what_does_not_end_is_ended(sandbox, body):
    verdict = run(f"import time\ndef attack():\n    {body}", sandbox=sandbox, timeout=0.5)
    assert verdict.fault == "timed out after 0.5 s"
    assert verdict.seconds < 5


def test_endless_output_is_cut(sandbox):
    verdict = run("def attack():\n    while True: print('x' * 1000)", sandbox=sandbox)
    assert "File too large" in verdict.fault
    assert verdict.output.startswith("xxx")
    assert len(verdict.output) == 10_000


@pytest.mark.parametrize("body", ["bytearray(2**40)", "[list(range(10**6)) for _ in range(10**5)]", "'x' * 10**10"])
def test_memory_is_bounded(sandbox, body):
    assert run(f"def attack():\n    try: {body}\n    except MemoryError: return 'refused'", sandbox=sandbox).passed


@pytest.mark.parametrize("size", [0, 2**20])
def test_the_disk_is_not_filled(sandbox, size):
    code = f"""
def attack():
    for number in range(10**9):
        with open(str(number), "wb") as file:
            file.write(bytes({size}))
"""
    fault = run(code, sandbox=sandbox).fault
    assert any(words in fault for words in ("No space left on device", "wrote more than 16 MiB or 256 files", "Disk quota exceeded")), fault


def test_a_file_stays_small(sandbox):
    assert "File too large" in run("def attack():\n    open('big', 'wb').write(bytes(2**24))", sandbox=sandbox).fault


def test_nothing_is_left_in_the_systems_temporary_folder(sandbox, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert run("def attack():\n    open('left', 'w').write('x')\n    return 'refused'", sandbox=sandbox).passed
    assert list(tmp_path.iterdir()) == []
