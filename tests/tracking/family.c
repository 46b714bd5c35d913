/*
 * Families of tasks that are born, and die, in every way there is.
 *
 *   family guard NAME        starts a family: its first node, and a guard who reaps whoever loses his parent
 *   family serve FD NAME     what a node is after exec: it goes on with its connection
 *   family born NAME         what posix_spawn starts: a new node
 *   family probe WHAT        whether this machine lets this user have bpf, perf or netlink: exit code 0 or 1
 *   family bomb NPROC UID    becomes UID, which may have NPROC processes, and forks for ever after a line on stdin
 *   family execs FILE N      N processes that execute themselves again and again; see `execs`
 *   .../agent PATH           a release agent: appends PATH to the file `log` beside it
 *
 * A node is a task that takes orders. It connects to the abstract socket NAME, says "TID TGID", and answers each line with "R NUMBER" or
 * "E ERRNO". The test's end ends it: everybody exits when the connection does. Orders:
 *
 *   fork, vfork, spawn, vm, thread       a new node: fork(2); vfork(2); posix_spawn(3); clone(2) with CLONE_VM; a thread
 *   clone FLAGS, settid PID              a new node: clone(2) with these flags, clone3(2) with that pid
 *   orphan, daemon                       a new node: a child of a process that has exited; the same in a session of its own
 *   heir                                 a new node: the child of a thread that has exited
 *   exec PATH                            execve(2) by this task; "-" is this program
 *   uring, sqpoll                        threads of the kernel's in this process
 *   kill PID, reap PID                   kills a child: it is a zombie; it is gone
 *   setsid, setuid UID, affinity CPU,... of this task
 *   leave, quit                          ends this task, ends its process
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/bpf.h>
#include <linux/cn_proc.h>
#include <linux/connector.h>
#include <linux/io_uring.h>
#include <linux/netlink.h>
#include <linux/perf_event.h>
#include <linux/sched.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

static const char *name;

static void die(const char *what)
{
	dprintf(2, "family: %s: %s\n", what, strerror(errno));
	_exit(1);
}

/* ---- nodes */

static void serve(int fd) __attribute__((noreturn));

static void hello(int fd)
{
	dprintf(fd, "%ld %d\n", syscall(SYS_gettid), getpid());
}

static void newborn(void) __attribute__((noreturn));
static void newborn(void)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	strcpy(addr.sun_path + 1, name);
	if (fd < 0 || connect(fd, (struct sockaddr *)&addr, offsetof(struct sockaddr_un, sun_path) + 1 + strlen(name)) < 0)
		_exit(1);
	hello(fd);
	serve(fd);
}

static int newborn_vm(void *unused)
{
	(void)unused;
	newborn();
}

static void *newborn_thread(void *unused)
{
	(void)unused;
	newborn();
}

static pid_t fork_newborn(void)
{
	pid_t pid = fork();

	if (pid == 0)
		newborn();
	return pid;
}

static void *forks_and_exits(void *pid)
{
	*(pid_t *)pid = fork_newborn();
	return NULL;
}

static void result(int fd, long n)
{
	if (n < 0)
		dprintf(fd, "E %d\n", errno);
	else
		dprintf(fd, "R %ld\n", n);
}

static long new_thread(void)
{
	pthread_attr_t attr;
	pthread_t thread;

	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, 65536);
	pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
	errno = pthread_create(&thread, &attr, newborn_thread, NULL);
	return errno ? -1 : 0;
}

static long heir(void)
{
	pthread_t thread;
	pid_t pid = -1;

	errno = pthread_create(&thread, NULL, forks_and_exits, &pid);
	if (errno)
		return -1;
	pthread_join(thread, NULL);
	return pid;
}

static long orphan(int session)
{
	pid_t middle = fork();

	if (middle == 0) {
		if (session)
			setsid();
		fork_newborn();
		_exit(0);
	}
	return waitpid(middle, NULL, 0);
}

static long spawn(void)
{
	char *argv[] = { "family", "born", (char *)name, NULL };
	pid_t pid;

	errno = posix_spawn(&pid, "/proc/thread-self/exe", NULL, NULL, argv, environ);
	return errno ? -1 : pid;
}

static long clone_vm(void)
{
	char *stack = mmap(NULL, 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	return stack == MAP_FAILED ? -1 : clone(newborn_vm, stack + 65536, CLONE_VM | SIGCHLD, NULL);
}

static long raw_clone(unsigned long flags)
{
	long pid = syscall(SYS_clone, flags | SIGCHLD, 0, 0, 0, 0);

	if (pid == 0)
		newborn();
	return pid;
}

static long clone_with_pid(pid_t pid)
{
	struct clone_args args = { .exit_signal = SIGCHLD, .set_tid = (unsigned long)&pid, .set_tid_size = 1 };
	long child = syscall(SYS_clone3, &args, sizeof args);

	if (child == 0)
		newborn();
	return child;
}

static long exec(int fd, const char *path)
{
	char number[16];

	snprintf(number, sizeof number, "%d", fd);
	fcntl(fd, F_SETFD, 0);
	execl(strcmp(path, "-") ? path : "/proc/thread-self/exe", "family", "serve", number, name, NULL);
	int e = errno;
	fcntl(fd, F_SETFD, FD_CLOEXEC);
	errno = e;
	return -1;
}

/* A read from a pipe that never ends, by a worker. With SQPOLL a thread of the kernel's submits it. */
static long uring(unsigned flags)
{
	struct io_uring_params p = { .flags = flags, .sq_thread_idle = 100000 };
	static char buffer[8];
	int fd = syscall(SYS_io_uring_setup, 4, &p), fds[2];

	if (fd < 0 || pipe2(fds, O_CLOEXEC) < 0)
		return -1;
	char *ring = mmap(NULL, p.sq_off.array + p.sq_entries * sizeof(unsigned), PROT_READ | PROT_WRITE, MAP_SHARED, fd, IORING_OFF_SQ_RING);
	struct io_uring_sqe *sqe = mmap(NULL, p.sq_entries * sizeof *sqe, PROT_READ | PROT_WRITE, MAP_SHARED, fd, IORING_OFF_SQES);
	if (ring == MAP_FAILED || sqe == MAP_FAILED)
		return -1;
	sqe->opcode = IORING_OP_READ;
	sqe->flags = IOSQE_ASYNC;
	sqe->fd = fds[0];
	sqe->addr = (unsigned long)buffer;
	sqe->len = sizeof buffer;
	*(unsigned *)(ring + p.sq_off.array) = 0;
	__atomic_store_n((unsigned *)(ring + p.sq_off.tail), 1, __ATOMIC_RELEASE);
	return syscall(SYS_io_uring_enter, fd, 1, 0, flags ? IORING_ENTER_SQ_WAKEUP : 0, NULL, 0);
}

/* The raw calls concern this task only. */
static long become(unsigned uid)
{
	if (syscall(SYS_setgroups, 0, NULL) < 0 || syscall(SYS_setresgid, uid, uid, uid) < 0)
		return -1;
	return syscall(SYS_setresuid, uid, uid, uid);
}

static long affinity(char *list)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	for (char *cpu = strtok(list, ","); cpu; cpu = strtok(NULL, ","))
		CPU_SET(atoi(cpu), &set);
	return syscall(SYS_sched_setaffinity, 0, sizeof set, &set);
}

static long kill_child(pid_t pid, int reap)
{
	siginfo_t info;

	kill(pid, SIGKILL);
	return waitid(P_PID, pid, &info, __WALL | WEXITED | (reap ? 0 : WNOWAIT));
}

static long obey(int fd, char *order)
{
	char *args = strchr(order, ' ');

	if (args)
		*args++ = 0;
	else
		args = "";
	if (!strcmp(order, "fork"))
		return fork_newborn();
	if (!strcmp(order, "vfork")) {
		/* The child runs on this very stack, and never returns. */
		pid_t pid = vfork();
		if (pid == 0)
			newborn();
		return pid;
	}
	if (!strcmp(order, "spawn"))
		return spawn();
	if (!strcmp(order, "vm"))
		return clone_vm();
	if (!strcmp(order, "thread"))
		return new_thread();
	if (!strcmp(order, "clone"))
		return raw_clone(strtoul(args, NULL, 0));
	if (!strcmp(order, "settid"))
		return clone_with_pid(atoi(args));
	if (!strcmp(order, "orphan"))
		return orphan(0);
	if (!strcmp(order, "daemon"))
		return orphan(1);
	if (!strcmp(order, "heir"))
		return heir();
	if (!strcmp(order, "exec"))
		return exec(fd, args);
	if (!strcmp(order, "uring"))
		return uring(0);
	if (!strcmp(order, "sqpoll"))
		return uring(IORING_SETUP_SQPOLL);
	if (!strcmp(order, "kill"))
		return kill_child(atoi(args), 0);
	if (!strcmp(order, "reap"))
		return kill_child(atoi(args), 1);
	if (!strcmp(order, "setsid"))
		return setsid();
	if (!strcmp(order, "setuid"))
		return become(atoi(args));
	if (!strcmp(order, "affinity"))
		return affinity(args);
	if (!strcmp(order, "leave")) {
		result(fd, 0);
		syscall(SYS_exit, 0);
	}
	if (!strcmp(order, "quit")) {
		result(fd, 0);
		_exit(0);
	}
	errno = ENOSYS;
	return -1;
}

static void serve(int fd)
{
	char line[PATH_MAX + 64];
	size_t len = 0;

	for (;;) {
		ssize_t n = recv(fd, line + len, sizeof line - len, 0);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			_exit(0);
		len += n;
		/* One order, one answer: nothing follows the newline. */
		if (line[len - 1] != '\n')
			continue;
		line[len - 1] = 0;
		len = 0;
		result(fd, obey(fd, line));
	}
}

static void guard(void)
{
	prctl(PR_SET_CHILD_SUBREAPER, 1);
	/* Before there is anything to be killed together with. */
	if (fork_newborn() < 0)
		die("fork");
	/* Not if the test dies: the family ends by itself, and wants to be reaped. */
	prctl(PR_SET_PDEATHSIG, 0);
	while (waitpid(-1, NULL, __WALL) > 0 || errno == EINTR)
		;
	_exit(0);
}

/* ---- probes */

static int probe_bpf(void)
{
	struct bpf_insn nothing[] = { { .code = BPF_ALU64 | BPF_MOV | BPF_K }, { .code = BPF_JMP | BPF_EXIT } };
	union bpf_attr load = { .prog_type = BPF_PROG_TYPE_RAW_TRACEPOINT, .insns = (unsigned long)nothing, .insn_cnt = 2, .license = (unsigned long)"GPL" };
	union bpf_attr map = { .map_type = BPF_MAP_TYPE_ARRAY, .key_size = 4, .value_size = 8, .max_entries = 1, .map_flags = BPF_F_MMAPABLE };
	int prog = syscall(SYS_bpf, BPF_PROG_LOAD, &load, sizeof load);
	union bpf_attr link = { .raw_tracepoint = { .name = (unsigned long)"task_newtask", .prog_fd = prog } };

	return prog < 0 || syscall(SYS_bpf, BPF_MAP_CREATE, &map, sizeof map) < 0 || syscall(SYS_bpf, BPF_RAW_TRACEPOINT_OPEN, &link, sizeof link) < 0;
}

/* Root listens to a CPU, everybody else to himself. */
static int probe_perf(void)
{
	struct perf_event_attr attr = { .type = PERF_TYPE_SOFTWARE, .size = sizeof attr, .config = PERF_COUNT_SW_DUMMY, .task = 1, .exclude_kernel = 1 };
	int root = geteuid() == 0;

	return syscall(SYS_perf_event_open, &attr, root ? -1 : 0, root ? 0 : -1, -1, PERF_FLAG_FD_CLOEXEC) < 0;
}

static int probe_netlink(void)
{
	struct sockaddr_nl addr = { .nl_family = AF_NETLINK, .nl_groups = CN_IDX_PROC };
	struct {
		struct nlmsghdr head;
		struct cn_msg cn;
		enum proc_cn_mcast_op op;
	} __attribute__((packed)) listen = {
		.head = { .nlmsg_len = sizeof listen, .nlmsg_type = NLMSG_DONE },
		.cn = { .id = { CN_IDX_PROC, CN_VAL_PROC }, .len = sizeof listen.op },
		.op = PROC_CN_MCAST_LISTEN,
	};
	struct timeval patience = { .tv_sec = 5 };
	char event[4096];
	int fd = socket(AF_NETLINK, SOCK_DGRAM | SOCK_CLOEXEC, NETLINK_CONNECTOR);

	if (fd < 0 || bind(fd, (struct sockaddr *)&addr, sizeof addr) < 0 || send(fd, &listen, sizeof listen, 0) < 0)
		return 1;
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
	/* Where nobody tells, nothing comes. */
	pid_t child = fork();
	if (child == 0)
		_exit(0);
	waitpid(child, NULL, 0);
	return recv(fd, event, sizeof event, 0) <= 0;
}

static int probe(const char *what)
{
	if (!strcmp(what, "bpf"))
		return probe_bpf();
	if (!strcmp(what, "perf"))
		return probe_perf();
	if (!strcmp(what, "netlink"))
		return probe_netlink();
	return 0;
}

/* ---- storms */

/* Ends the process if nobody can write into the pipe any more: the test has ended. */
static void orphaned(int fd)
{
	struct pollfd in = { .fd = fd, .events = POLLRDHUP };

	if (poll(&in, 1, 0) > 0 && in.revents & (POLLHUP | POLLERR))
		_exit(0);
}

static void bomb(int nproc, unsigned uid)
{
	struct rlimit limit = { nproc, nproc };
	char c;

	signal(SIGCHLD, SIG_IGN);
	if (setrlimit(RLIMIT_NPROC, &limit) < 0 || become(uid) < 0)
		die("bomb");
	setpriority(PRIO_PROCESS, 0, 10);
	printf("%d\n", getpid());
	fflush(stdout);
	if (read(0, &c, 1) != 1)
		_exit(0);
	for (;;) {
		orphaned(0);
		if (fork() < 0)
			usleep(1000);
		else
			usleep(rand() % 200);
	}
}

/*
 * FILE holds ints: the generation, and for each process the generation that it has seen at rest, and its executions. While the
 * generation is odd the processes execute themselves, by turns from the first thread and from another one while two more wait.
 */
static volatile int *flags;
static char file[PATH_MAX], nr_text[16], life_text[16];

static void *execute(void *unused)
{
	(void)unused;
	/* What /proc shows of a thread may be out of date for a moment, when the number was another one's. */
	for (int i = 0; i < 1000; i++, usleep(100))
		execl("/proc/thread-self/exe", "family", "again", file, nr_text, life_text, NULL);
	die("exec");
	return NULL;
}

static void *wait_here(void *unused)
{
	(void)unused;
	for (;;)
		pause();
	return NULL;
}

static void again(int nr, int life)
{
	pthread_t t;

	for (; !(flags[0] & 1); usleep(500)) {
		orphaned(life);
		flags[1 + 2 * nr] = flags[0];
	}
	orphaned(life);
	int turn = ++flags[2 + 2 * nr];
	for (int i = 0; i < 2 && turn % 3; i++)
		pthread_create(&t, NULL, wait_here, NULL);
	if (turn % 2)
		pthread_create(&t, NULL, execute, NULL);
	else
		execute(NULL);
	/* Some of the first threads are dead by then. */
	if (turn % 4 == 1)
		syscall(SYS_exit, 0);
	for (;;)
		pause();
}

static void open_flags(const char *path)
{
	int fd = open(path, O_RDWR | O_CLOEXEC);

	snprintf(file, sizeof file, "%s", path);
	flags = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (fd < 0 || flags == MAP_FAILED)
		die(path);
	close(fd);
}

static void execs(const char *path, int n)
{
	int life[2];
	char c;

	open_flags(path);
	setpriority(PRIO_PROCESS, 0, 10);
	if (pipe(life) < 0)
		die("pipe");
	snprintf(life_text, sizeof life_text, "%d", life[0]);
	for (int i = 0; i < n; i++) {
		pid_t pid = fork();
		if (pid == 0) {
			close(life[1]);
			snprintf(nr_text, sizeof nr_text, "%d", i);
			again(i, life[0]);
		}
		printf("%d ", pid);
	}
	printf("\n");
	fflush(stdout);
	while (read(0, &c, 1) > 0)
		;
	_exit(0);
}

static int agent(const char *self, const char *path)
{
	char log[PATH_MAX], line[PATH_MAX];
	int dir = strrchr(self, '/') - self;

	snprintf(log, sizeof log, "%.*s/log", dir, self);
	int fd = open(log, O_WRONLY | O_APPEND | O_CREAT, 0644);
	int n = snprintf(line, sizeof line, "%s\n", path);
	return write(fd, line, n) != n;
}

int main(int argc, char **argv)
{
	const char *base = strrchr(argv[0], '/');

	signal(SIGPIPE, SIG_IGN);
	if (base && !strcmp(base, "/agent") && argc == 2)
		return agent(argv[0], argv[1]);
	if (argc < 3)
		return 2;
	name = argv[argc - 1];
	if (!strcmp(argv[1], "guard"))
		guard();
	if (!strcmp(argv[1], "born"))
		newborn();
	if (!strcmp(argv[1], "probe"))
		return probe(argv[2]);
	if (argc < 4)
		return 2;
	if (!strcmp(argv[1], "serve")) {
		int fd = atoi(argv[2]);
		fcntl(fd, F_SETFD, FD_CLOEXEC);
		hello(fd);
		serve(fd);
	}
	if (!strcmp(argv[1], "bomb"))
		bomb(atoi(argv[2]), atoi(argv[3]));
	if (!strcmp(argv[1], "execs"))
		execs(argv[2], atoi(argv[3]));
	if (!strcmp(argv[1], "again")) {
		open_flags(argv[2]);
		snprintf(nr_text, sizeof nr_text, "%s", argv[3]);
		snprintf(life_text, sizeof life_text, "%s", name);
		again(atoi(argv[3]), atoi(name));
	}
	return 2;
}
