"""The system calls that a computing Python program makes, with their numbers.

Everything that is not here is refused: new processes and threads, other programs, sockets, signals to others, tracing, mounts,
changes of owner, mode or time, links and folders, and whatever a later kernel brings. Numbers are those of Linux's `unistd.h`;
None: that machine has no such call.
"""

MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # place in the tables, AUDIT_ARCH of linux/audit.h

ALLOWED = {
    # files that are open
    "read": (0, 63),
    "write": (1, 64),
    "readv": (19, 65),
    "writev": (20, 66),
    "pread64": (17, 67),
    "pwrite64": (18, 68),
    "lseek": (8, 62),
    "close": (3, 57),
    "close_range": (436, 436),
    "dup": (32, 23),
    "dup2": (33, None),
    "dup3": (292, 24),
    "pipe": (22, None),
    "pipe2": (293, 59),
    "flock": (73, 32),
    "ftruncate": (77, 46),
    "fadvise64": (221, 223),
    "sendfile": (40, 71),
    "select": (23, None),
    "pselect6": (270, 72),
    "poll": (7, None),
    "ppoll": (271, 73),
    # files by name: where, is decided by Landlock and the mounts
    "stat": (4, None),
    "fstat": (5, 80),
    "lstat": (6, None),
    "newfstatat": (262, 79),
    "statx": (332, 291),
    "statfs": (137, 43),
    "fstatfs": (138, 44),
    "access": (21, None),
    "faccessat": (269, 48),
    "faccessat2": (439, 439),
    "readlink": (89, None),
    "readlinkat": (267, 78),
    "getdents64": (217, 61),
    "getcwd": (79, 17),
    "chdir": (80, 49),
    "fchdir": (81, 50),
    "rename": (82, None),
    "renameat": (264, 38),
    "renameat2": (316, 276),
    "unlink": (87, None),
    "unlinkat": (263, 35),
    "umask": (95, 166),
    # memory
    "mmap": (9, 222),
    "munmap": (11, 215),
    "mprotect": (10, 226),
    "mremap": (25, 216),
    "madvise": (28, 233),
    "brk": (12, 214),
    "mincore": (27, 232),
    "membarrier": (324, 283),
    # signals of its own, locks, time
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "rt_sigpending": (127, 136),
    "rt_sigtimedwait": (128, 137),
    "rt_sigsuspend": (130, 133),
    "sigaltstack": (131, 132),
    "pause": (34, None),
    "alarm": (37, None),
    "setitimer": (38, 103),
    "getitimer": (36, 102),
    "restart_syscall": (219, 128),
    "futex": (202, 98),
    "sched_yield": (24, 124),
    "sched_getaffinity": (204, 123),
    "set_robust_list": (273, 99),
    "rseq": (334, 293),
    "nanosleep": (35, 101),
    "clock_nanosleep": (230, 115),
    "clock_gettime": (228, 113),
    "clock_getres": (229, 114),
    "gettimeofday": (96, 169),
    "time": (201, None),
    "times": (100, 153),
    "getrandom": (318, 278),
    # about itself
    "getpid": (39, 172),
    "getppid": (110, 173),
    "gettid": (186, 178),
    "getpgrp": (111, None),
    "getuid": (102, 174),
    "geteuid": (107, 175),
    "getgid": (104, 176),
    "getegid": (108, 177),
    "getgroups": (115, 158),
    "getresuid": (118, 148),
    "getresgid": (120, 150),
    "uname": (63, 160),
    "sysinfo": (99, 179),
    "getrusage": (98, 165),
    "getrlimit": (97, 163),
    "getcpu": (309, 168),
    "exit": (60, 93),
    "exit_group": (231, 94),
}

# O_TRUNC only beside write access: Linux truncates a file that is opened for reading too, where Landlock before its version 3 sees
# but a read. Access mode 3 opens a file without Landlock asking for any right.
OPEN_FLAGS = (0o1003, (0o0, 0o1, 0o2, 0o1001, 0o1002))
TTY_AND_BLOCKING = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)  # TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX
DUPLICATION_FLAGS_AND_LOCKS = (0, 1, 2, 3, 4, 5, 6, 7, 1030)  # not F_SETOWN and F_SETSIG, which send signals

OWN_PROCESS = "own process"

# Allowed for some values of an argument: numbers, place of the argument, mask, values after masking.
CONDITIONAL = {
    "open": ((2, None), 1, *OPEN_FLAGS),
    "openat": ((257, 56), 2, *OPEN_FLAGS),
    "fcntl": ((72, 25), 1, 0xFFFFFFFF, DUPLICATION_FLAGS_AND_LOCKS),
    "ioctl": ((16, 29), 1, 0xFFFFFFFF, TTY_AND_BLOCKING),
    "prlimit64": ((302, 261), 0, 0xFFFFFFFF, (0,)),
    "kill": ((62, 129), 0, 0xFFFFFFFF, (OWN_PROCESS,)),
    "tgkill": ((234, 131), 0, 0xFFFFFFFF, (OWN_PROCESS,)),
}
