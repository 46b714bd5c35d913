/*
 * What is injected into: a process in one of many situations, which judges for itself whether it was disturbed.
 *
 *   target MODE [ARG]    says "ready" when the situation is there; the modes that end by themselves then say
 *                        "R RESULT ERRNO MICROSECONDS EXTRA"
 *
 * "call NAME" makes the blocking call NAME, which a forked child ends after some time, or its own limit.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/futex.h>
#include <linux/seccomp.h>
#include <mqueue.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <sys/msg.h>
#include <sys/prctl.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifndef PR_SET_SYSCALL_USER_DISPATCH
#define PR_SET_SYSCALL_USER_DISPATCH 59
#endif

/* How long a call blocks. */
#define MS 400
#define NS (MS * 1000000L)

static void ready(void)
{
	dprintf(1, "ready\n");
}

static void result(long r, int e, long us, long extra)
{
	dprintf(1, "R %ld %d %ld %ld\n", r, r < 0 ? e : 0, us, extra);
}

static void die(const char *what)
{
	dprintf(1, "cannot: %s: %s\n", what, strerror(errno));
	_exit(1);
}

static long long now_us(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000LL + t.tv_nsec / 1000;
}

static void sleep_ms(long ms)
{
	long long end = now_us() + ms * 1000;

	while (now_us() < end)
		usleep(1000);
}

/* Shared with the child that ends the call. */
static struct shared {
	atomic_int word, go;
	pid_t parent;
	int fd[2], other;
	int id;
} *shared;

static volatile sig_atomic_t handled;

static void on_signal(int sig)
{
	(void)sig;
	handled++;
}

static struct timespec *in(long ms)
{
	static struct timespec t;

	t.tv_sec = ms / 1000;
	t.tv_nsec = ms % 1000 * 1000000;
	return &t;
}

static struct timespec *at(long ms)
{
	static struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	t.tv_nsec += ms * 1000000;
	t.tv_sec += t.tv_nsec / 1000000000;
	t.tv_nsec %= 1000000000;
	return &t;
}

static void handler(int flags)
{
	struct sigaction sa = { .sa_handler = on_signal, .sa_flags = flags };

	sigaction(SIGUSR1, &sa, NULL);
}

static void blocked(sigset_t *set)
{
	sigemptyset(set);
	sigaddset(set, SIGUSR1);
	sigprocmask(SIG_BLOCK, set, NULL);
}

/* What the child does. */
/* To the thread: the kernel may give a signal for the process to any thread that does not block it at that moment. */
static void do_kill(void) { syscall(SYS_tgkill, shared->parent, shared->parent, SIGUSR1); }
static void do_write(void) { if (write(shared->fd[1], "12345678", 8) != 8) _exit(1); }
static void do_drain(void) { char b[65536]; while (read(shared->fd[0], b, sizeof(b)) > 0); }
static void do_wake(void)
{
	shared->word = 1;
	syscall(SYS_futex, &shared->word, FUTEX_WAKE, 1, NULL, NULL, 0);
}
static void do_exit(void) { }
static void do_unlock(void) { close(shared->other); }
static void do_semop(void)
{
	struct sembuf b = { 0, 1, 0 };

	semop(shared->id, &b, 1);
}
static void do_msgsnd(void)
{
	struct { long type; char text[4]; } m = { 1, "abc" };

	msgsnd(shared->id, &m, 4, 0);
}
static void do_connect(void)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	socklen_t len = sizeof(a);
	int s = socket(AF_UNIX, SOCK_STREAM, 0);

	getsockname(shared->fd[0], (void *)&a, &len);
	if (connect(s, (void *)&a, len))
		_exit(1);
	sleep_ms(50);
}
static char path[64];
static void do_create(void) { char f[80]; snprintf(f, sizeof(f), "%s/x", path); close(open(f, O_CREAT | O_WRONLY, 0600)); unlink(f); }
static void do_mqsend(void) { if (mq_send(shared->fd[1], "abc", 3, 0)) _exit(1); }

/* What is there before. */
static void set_handler(void) { handler(0); }
static void set_restart(void) { handler(SA_RESTART); if (pipe(shared->fd)) die("pipe"); }
static void set_pipe(void) { if (pipe(shared->fd)) die("pipe"); }
static void set_pair(void) { if (socketpair(AF_UNIX, SOCK_STREAM, 0, shared->fd)) die("socketpair"); }
static void set_full(void)
{
	set_pipe();
	fcntl(shared->fd[1], F_SETFL, O_NONBLOCK);
	while (write(shared->fd[1], path, 64) > 0);
	fcntl(shared->fd[1], F_SETFL, 0);
}
static void set_blocked(void) { sigset_t set; handler(0); blocked(&set); }
static void set_eventfd(void) { shared->fd[0] = shared->fd[1] = eventfd(0, 0); }
static void set_sem(void)
{
	shared->id = semget(IPC_PRIVATE, 1, 0600);
	if (shared->id < 0)
		die("semget");
}
static void set_msg(void)
{
	shared->id = msgget(IPC_PRIVATE, 0600);
	if (shared->id < 0)
		die("msgget");
}
static void set_listen(void)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };

	shared->fd[0] = socket(AF_UNIX, SOCK_STREAM, 0);
	if (bind(shared->fd[0], (void *)&a, sizeof(sa_family_t)) || listen(shared->fd[0], 1))
		die("listen");
}
static void set_dir(void)
{
	strcpy(path, "/tmp/cgfuse-test-inject-XXXXXX");
	if (!mkdtemp(path))
		die("mkdtemp");
	shared->fd[0] = inotify_init();
	inotify_add_watch(shared->fd[0], path, IN_CREATE);
}
static void set_file(void)
{
	char name[] = "/tmp/cgfuse-test-inject-XXXXXX";

	shared->fd[0] = mkstemp(name);
	shared->other = open(name, O_RDWR);
	unlink(name);
}
static void set_epoll(void)
{
	struct epoll_event e = { .events = EPOLLIN };

	set_pipe();
	shared->other = epoll_create1(0);
	epoll_ctl(shared->other, EPOLL_CTL_ADD, shared->fd[0], &e);
}
static void set_mq(void)
{
	struct mq_attr a = { .mq_maxmsg = 1, .mq_msgsize = 8 };
	char name[32];

	snprintf(name, sizeof(name), "/cgfuse-test-%d", getpid());
	shared->fd[0] = shared->fd[1] = mq_open(name, O_CREAT | O_EXCL | O_RDWR, 0600, &a);
	if (shared->fd[0] < 0)
		die("mq_open");
	mq_unlink(name);
}
static void set_timerfd(void)
{
	shared->fd[0] = timerfd_create(CLOCK_MONOTONIC, 0);
}

/* A ring with a read of the pipe under way. The syscall numbers are the same for 64 and 32 bits. */
static void set_ring(void)
{
	struct { uint32_t sq, cq, flags, cpu, idle, features, wq, resv[3]; uint32_t sq_off[10], cq_off[10]; } p = { 0 };
	char *ring, *entries;
	static char into[8];

	set_pipe();
	shared->other = syscall(425, 4, &p);
	if (shared->other < 0)
		die("io_uring_setup");
	ring = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, shared->other, 0);
	entries = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, shared->other, 0x10000000);
	if (ring == MAP_FAILED || entries == MAP_FAILED)
		die("mmap");
	/* IORING_OP_READ; opcode, descriptor, address, length. */
	entries[0] = 22;
	*(int *)(entries + 4) = shared->fd[0];
	*(uint64_t *)(entries + 16) = (uintptr_t)into;
	*(uint32_t *)(entries + 24) = sizeof(into);
	/* sq_off: head, tail, ring_mask, ring_entries, flags, dropped, array. */
	*(uint32_t *)(ring + p.sq_off[6]) = 0;
	*(volatile uint32_t *)(ring + p.sq_off[1]) = 1;
	if (syscall(426, shared->other, 1, 0, 0, NULL, 0) != 1)
		die("io_uring_enter");
}

/* The calls. */
static char buf[4096];
static long c_pause(void) { return pause(); }
static long c_nanosleep(void) { return syscall(SYS_nanosleep, in(MS), in(MS)); }
static long c_nanosleep_long(void) { return syscall(SYS_nanosleep, in(3 * MS), in(3 * MS)); }
static long c_clock_rel(void) { return clock_nanosleep(CLOCK_MONOTONIC, 0, in(MS), NULL) ? -1 : 0; }
static long c_clock_abs(void) { return clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, at(MS), NULL) ? -1 : 0; }
static long c_poll(void) { struct pollfd p = { shared->fd[0], POLLIN, 0 }; return poll(&p, 1, MS); }
static long c_poll_inf(void) { struct pollfd p = { shared->fd[0], POLLIN, 0 }; return poll(&p, 1, -1); }
static long c_ppoll(void) { struct pollfd p = { shared->fd[0], POLLIN, 0 }; sigset_t s; sigemptyset(&s); return ppoll(&p, 1, in(MS), &s); }
static long c_ppoll_sig(void) { struct pollfd p = { shared->fd[0], POLLIN, 0 }; sigset_t s; sigemptyset(&s); return ppoll(&p, 1, NULL, &s); }
static long c_select(void) { struct timeval t = { 0, MS * 1000 }; return select(0, NULL, NULL, NULL, &t); }
static long c_pselect(void) { sigset_t s; sigemptyset(&s); return pselect(0, NULL, NULL, NULL, in(MS), &s); }
static long c_futex(void) { return syscall(SYS_futex, &shared->word, FUTEX_WAIT, 0, NULL, NULL, 0); }
static long c_futex_rel(void) { return syscall(SYS_futex, &shared->word, FUTEX_WAIT, 0, in(MS), NULL, 0); }
static long c_futex_abs(void) { return syscall(SYS_futex, &shared->word, FUTEX_WAIT_BITSET, 0, at(MS), NULL, -1); }
static long c_read(void) { return read(shared->fd[0], buf, 8); }
static long c_timer(void) { struct itimerspec t = { .it_value = { 0, NS } }; timerfd_settime(shared->fd[0], 0, &t, NULL); return c_read(); }
static long c_write(void) { memset(buf, 1, sizeof(buf)); return write(shared->fd[1], buf, sizeof(buf)); }
static long c_recv(void) { return recv(shared->fd[0], buf, 8, 0); }
static long c_accept(void) { return accept(shared->fd[0], NULL, NULL) >= 0; }
static long c_wait(void) { int s; return waitpid(-1, &s, 0) > 0 && WIFEXITED(s); }
static long c_waitid(void) { siginfo_t i; return waitid(P_ALL, 0, &i, WEXITED) == 0 && i.si_code == CLD_EXITED; }
static long c_sigsuspend(void)
{
	sigset_t s, after;
	long r;
	int e;

	sigemptyset(&s);
	r = sigsuspend(&s);
	e = errno;
	sigprocmask(SIG_BLOCK, NULL, &after);
	errno = e;
	return sigismember(&after, SIGUSR1) ? r : -2;
}
static long c_sigwaitinfo(void) { sigset_t s; siginfo_t i; blocked(&s); return sigwaitinfo(&s, &i); }
static long c_sigtimedwait(void) { sigset_t s; siginfo_t i; blocked(&s); return sigtimedwait(&s, &i, in(MS)); }
static long c_epoll(void) { struct epoll_event e; return epoll_wait(shared->other, &e, 1, -1); }
static long c_epoll_fin(void) { struct epoll_event e; return epoll_wait(shared->other, &e, 1, MS); }
/* IORING_ENTER_GETEVENTS */
static long c_ring(void) { return syscall(426, shared->other, 0, 1, 1, NULL, 0); }
static long c_semop(void) { struct sembuf b = { 0, -1, 0 }; long r = semop(shared->id, &b, 1); int e = errno; semctl(shared->id, 0, IPC_RMID); errno = e; return r; }
static long c_msgrcv(void) { struct { long type; char text[4]; } m; long r = msgrcv(shared->id, &m, 4, 0, 0); int e = errno; msgctl(shared->id, IPC_RMID, NULL); errno = e; return r; }
static long c_flock(void) { return flock(shared->fd[0], LOCK_EX); }
static long c_setlkw(void) { struct flock l = { .l_type = F_WRLCK }; return fcntl(shared->fd[0], F_SETLKW, &l); }
static long c_inotify(void) { long r = read(shared->fd[0], buf, sizeof(buf)) > 0; rmdir(path); return r; }
static long c_mq(void) { struct timespec t; clock_gettime(CLOCK_REALTIME, &t); t.tv_sec += 5; return mq_timedreceive(shared->fd[0], buf, 8, NULL, &t); }
static long c_spin(void) { long long end = now_us() + MS * 1000; long n = 0; while (now_us() < end) n++; return n > 0; }

/* Locks are taken by the child, which says so by the word. */
static void hold_flock(void) { flock(shared->other, LOCK_EX); }
static void hold_setlk(void) { struct flock l = { .l_type = F_WRLCK }; fcntl(shared->other, F_SETLK, &l); }

static const struct call {
	const char *name;
	void (*set)(void);
	long (*call)(void);
	void (*end)(void); /* by a child after MS; NULL: ends by itself */
	void (*hold)(void); /* by the child before */
} calls[] = {
	{ "pause", set_handler, c_pause, do_kill, NULL },
	{ "nanosleep", NULL, c_nanosleep, NULL, NULL },
	{ "nanosleep-signal", set_handler, c_nanosleep_long, do_kill, NULL },
	{ "clock_nanosleep-relative", NULL, c_clock_rel, NULL, NULL },
	{ "clock_nanosleep-absolute", NULL, c_clock_abs, NULL, NULL },
	{ "poll", set_pipe, c_poll, NULL, NULL },
	{ "poll-infinite", set_pipe, c_poll_inf, do_write, NULL },
	{ "ppoll", set_pipe, c_ppoll, NULL, NULL },
	{ "ppoll-signal", set_pipe, c_ppoll_sig, do_kill, NULL },
	{ "select", NULL, c_select, NULL, NULL },
	{ "pselect", NULL, c_pselect, NULL, NULL },
	{ "futex", NULL, c_futex, do_wake, NULL },
	{ "futex-relative", NULL, c_futex_rel, NULL, NULL },
	{ "futex-absolute", NULL, c_futex_abs, NULL, NULL },
	{ "read-pipe", set_pipe, c_read, do_write, NULL },
	{ "read-signal", set_pipe, c_read, do_kill, NULL },
	{ "read-restart", set_restart, c_read, do_kill, NULL },
	{ "write-pipe", set_full, c_write, do_drain, NULL },
	{ "recv", set_pair, c_recv, do_write, NULL },
	{ "accept", set_listen, c_accept, do_connect, NULL },
	{ "waitpid", NULL, c_wait, do_exit, NULL },
	{ "waitid", NULL, c_waitid, do_exit, NULL },
	{ "sigsuspend", set_blocked, c_sigsuspend, do_kill, NULL },
	{ "sigwaitinfo", NULL, c_sigwaitinfo, do_kill, NULL },
	{ "sigtimedwait", NULL, c_sigtimedwait, NULL, NULL },
	{ "epoll_wait-infinite", set_epoll, c_epoll, do_write, NULL },
	{ "epoll_wait-finite", set_epoll, c_epoll_fin, NULL, NULL },
	{ "io_uring_enter", set_ring, c_ring, do_write, NULL },
	{ "semop", set_sem, c_semop, do_semop, NULL },
	{ "msgrcv", set_msg, c_msgrcv, do_msgsnd, NULL },
	{ "eventfd", set_eventfd, c_read, do_write, NULL },
	{ "timerfd", set_timerfd, c_timer, NULL, NULL },
	{ "inotify", set_dir, c_inotify, do_create, NULL },
	{ "flock", set_file, c_flock, do_unlock, hold_flock },
	{ "setlkw", set_file, c_setlkw, do_exit, hold_setlk },
	{ "mq_timedreceive", set_mq, c_mq, do_mqsend, NULL },
	{ "spin", NULL, c_spin, NULL, NULL },
};

static void threads(int n, void *(*start)(void *));
static void *idle(void *arg);

static int do_call(const char *name, int n)
{
	const struct call *c;
	long long start;
	sigset_t keep;
	pid_t child = 0;
	int e;
	long r;

	for (c = calls; c < calls + sizeof(calls) / sizeof(*calls); c++)
		if (!strcmp(c->name, name))
			break;
	if (c == calls + sizeof(calls) / sizeof(*calls))
		die(name);
	if (strstr(name, "-signal"))
		handler(0);
	if (!strncmp(name, "sig", 3))
		blocked(&keep);
	if (c->set)
		c->set();
	if (strstr(name, "ppoll-signal")) {
		sigset_t s;

		blocked(&s);
	}
	if (c->end) {
		child = fork();
		if (!child) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			if (c->end == do_drain)
				close(shared->fd[1]);
			if (c->hold) {
				/* A description of its own: locks of the inherited one are the parent's too. */
				char self[32];

				snprintf(self, sizeof(self), "/proc/self/fd/%d", shared->other);
				shared->other = open(self, O_RDWR);
				c->hold();
				shared->word = 1;
			}
			while (!shared->go)
				usleep(1000);
			sleep_ms(MS);
			c->end();
			if (c->end == do_drain || !strcmp(name, "read-restart"))
				sleep_ms(20);
			if (!strcmp(name, "read-restart"))
				do_write();
			_exit(0);
		}
		if (c->hold)
			while (!shared->word)
				usleep(1000);
		if (c->end == do_drain)
			close(shared->fd[0]);
	}
	threads(n, idle);
	ready();
	start = now_us();
	shared->go = 1;
	r = c->call();
	e = errno;
	result(r, e, now_us() - start, handled);
	if (child > 0) {
		kill(child, SIGKILL);
		waitpid(child, NULL, 0);
	}
	return 0;
}

/* Threads. */
static void *idle(void *arg)
{
	for (;;)
		pause();
	return arg;
}

static void *idle_own_files(void *arg)
{
	if (unshare(CLONE_FILES))
		die("unshare");
	atomic_fetch_add(&shared->word, 1);
	return idle(arg);
}

static void *idle_apart(void *arg)
{
	if (unshare(CLONE_NEWUTS))
		die("unshare");
	atomic_fetch_add(&shared->word, 1);
	return idle(arg);
}

/* One of several threads gives up its capabilities, or fills a descriptor table of its own. */
static int victim;

static void *idle_weak(void *arg)
{
	if (atomic_fetch_add(&shared->word, 1) == victim) {
		struct { uint32_t version; int pid; } header = { 0x20080522, 0 };
		uint32_t none[6] = { 0 };

		if (syscall(SYS_capset, &header, none))
			die("capset");
		atomic_fetch_add(&shared->word, 1000);
	}
	return idle(arg);
}

static void *idle_full(void *arg)
{
	if (unshare(CLONE_FILES))
		die("unshare");
	if (atomic_fetch_add(&shared->word, 1) == victim) {
		while (dup(0) >= 0)
			;
		shared->id = syscall(SYS_gettid);
		atomic_fetch_add(&shared->word, 1000);
	}
	return idle(arg);
}

/* Counts the wake-ups of a short sleep, so that the test sees it live. */
static void *busy(void *arg)
{
	for (;;) {
		usleep(1000);
		atomic_fetch_add(&shared->word, 1);
	}
	return arg;
}

static void threads(int n, void *(*start)(void *))
{
	pthread_attr_t attr;
	pthread_t t;

	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, 65536);
	while (n-- > 1)
		if (pthread_create(&t, &attr, start, NULL))
			die("pthread_create");
}

/* Answers every line with the count of busy threads: it is alive. */
static int alive(void)
{
	char c;

	ready();
	while (read(0, &c, 1) == 1)
		dprintf(1, "%d\n", atomic_load(&shared->word));
	return 0;
}

/* Each thread creates its successor and ends: who is listed may have been replaced. */
static void *link_of_chain(void *arg)
{
	pthread_t t;

	atomic_fetch_add(&shared->word, 1);
	if (pthread_create(&t, arg, link_of_chain, arg))
		die("pthread_create");
	return NULL;
}

static void chain(int n)
{
	static pthread_attr_t attr;
	pthread_t t;

	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, 65536);
	pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
	while (n-- > 0)
		if (pthread_create(&t, &attr, link_of_chain, &attr))
			die("pthread_create");
}

/* Whether it has been told to end. */
static int told(void)
{
	struct pollfd p = { 0, POLLIN, 0 };

	return poll(&p, 1, 0) != 0;
}

/* Signals in order. A child queues N of them with numbers, stops and continues us. */
static volatile long last_value, bad_order, n_signals;

static void on_queued(int sig, siginfo_t *info, void *ctx)
{
	(void)sig, (void)ctx;
	if (info->si_value.sival_int != last_value + 1)
		bad_order++;
	last_value = info->si_value.sival_int;
	n_signals++;
}

static int signals(long n)
{
	struct sigaction sa = { .sa_sigaction = on_queued, .sa_flags = SA_SIGINFO | SA_RESTART };
	long spurious = 0, r;
	int fd[2];
	pid_t child;
	char c;

	sigaction(SIGRTMIN, &sa, NULL);
	if (pipe(fd))
		die("pipe");
	child = fork();
	if (!child) {
		struct pollfd p = { 0, POLLIN, 0 };

		prctl(PR_SET_PDEATHSIG, SIGKILL);
		for (int i = 1; i <= n && (i % 64 || poll(&p, 1, 0) == 0); i++) {
			union sigval v = { .sival_int = i };

			while (sigqueue(shared->parent, SIGRTMIN, v))
				usleep(100);
			shared->id = i;
			if (i % 16 == 0)
				usleep(200);
			if (i % 500 == 0) {
				kill(shared->parent, SIGSTOP);
				usleep(500);
				kill(shared->parent, SIGCONT);
			}
			if (i % 8 == 0 && write(fd[1], "x", 1) != 1)
				_exit(1);
		}
		_exit(0);
	}
	close(fd[1]);
	ready();
	/* A restarting read: EINTR would be somebody else's doing. */
	while ((r = read(fd[0], &c, 1)) != 0)
		spurious += r < 0;
	waitpid(child, NULL, 0);
	/* The last ones may still be on their way. */
	sleep_ms(5);
	result(n_signals, 0, bad_order, spurious + (shared->id - n_signals) * 1000000);
	return 0;
}

/* Signals for the process, one at a time, from a child: the kernel gives them to the main thread while that can take them. */
static void on_mine(int sig)
{
	(void)sig;
	shared->other += syscall(SYS_gettid) != shared->parent;
	shared->word++;
}

static void for_mine(int n)
{
	/* Without SA_NODEFER the next one could come while the main thread blocks it. */
	struct sigaction sa = { .sa_handler = on_mine, .sa_flags = SA_RESTART | SA_NODEFER };

	sigaction(SIGUSR1, &sa, NULL);
	threads(n, idle);
}

static int sent(int n)
{
	pid_t child;
	int status;

	for_mine(n);
	child = fork();
	if (!child) {
		struct pollfd p = { 0, POLLIN, 0 };
		unsigned seed = 1;

		prctl(PR_SET_PDEATHSIG, SIGKILL);
		for (shared->id = 0; poll(&p, 1, rand_r(&seed) % 4 == 0) == 0; shared->id++) {
			long long end = now_us() + 5000000;

			for (int i = rand_r(&seed) % 20000; i > 0; i--)
				atomic_signal_fence(memory_order_seq_cst);
			kill(shared->parent, SIGUSR1);
			while (shared->word <= shared->id && now_us() < end)
				usleep(1);
			if (shared->word <= shared->id)
				_exit(1);
		}
		_exit(0);
	}
	ready();
	if (waitpid(child, &status, 0) != child)
		die("waitpid");
	result(shared->word, 0, status != 0, shared->other);
	return 0;
}

/* The same, sent by the test; every line is answered. */
static int awaited(int n)
{
	char c;

	for_mine(n);
	ready();
	while (read(0, &c, 1) == 1)
		result(shared->word, 0, 0, shared->other);
	return 0;
}

#ifdef __x86_64__
/* Every register, the flags and vector registers, compared all the time. */
static int registers(long seconds)
{
	long long end = now_us() + seconds * 1000000;
	long n = 0, bad = 0;

	ready();
	while (now_us() < end && !told()) {
		for (int i = 0; i < 1000; i++) {
			unsigned long wrong = 0;

			asm volatile(
				"sub $128, %%rsp\n push %%rbp\n push %%rbx\n"
				"mov $0x1111111111111111, %%rax\n mov $0x2222222222222222, %%rbx\n"
				"mov $0x3333333333333333, %%rcx\n mov $0x4444444444444444, %%rdx\n"
				"mov $0x5555555555555555, %%rsi\n mov $0x6666666666666666, %%rdi\n"
				"mov $0x7777777777777777, %%r8\n mov $0x8888888888888888, %%r9\n"
				"mov $0x9999999999999999, %%r10\n mov $0xaaaaaaaaaaaaaaaa, %%r11\n"
				"mov $0xbbbbbbbbbbbbbbbb, %%r12\n mov $0xcccccccccccccccc, %%r13\n"
				"mov $0xdddddddddddddddd, %%r14\n mov $0xeeeeeeeeeeeeeeee, %%rbp\n"
				"movq %%rax, %%xmm5\n movq %%r13, %%xmm15\n"
				"std\n mov $0x7f, %%r15b\n add $1, %%r15b\n stc\n" /* DF, OF, SF, AF, CF */
				".rept 64\n nop\n .endr\n"
				"pushfq\n pop %%r15\n cld\n and $0xcd5, %%r15\n xor $0xc91, %%r15\n"
				"push %%rax\n movq %%xmm5, %%rax\n xor %%rax, (%%rsp)\n pop %%rax\n or %%rax, %%r15\n mov $0x1111111111111111, %%rax\n"
				"push %%rax\n movq %%xmm15, %%rax\n xor %%r13, %%rax\n or %%rax, %%r15\n pop %%rax\n"
				".macro chk reg, val\n push %%rax\n mov $\\val, %%rax\n xor \\reg, %%rax\n or %%rax, %%r15\n pop %%rax\n .endm\n"
				"chk %%rbx, 0x2222222222222222\n chk %%rcx, 0x3333333333333333\n chk %%rdx, 0x4444444444444444\n"
				"chk %%rsi, 0x5555555555555555\n chk %%rdi, 0x6666666666666666\n chk %%r8, 0x7777777777777777\n"
				"chk %%r9, 0x8888888888888888\n chk %%r10, 0x9999999999999999\n chk %%r11, 0xaaaaaaaaaaaaaaaa\n"
				"chk %%r12, 0xbbbbbbbbbbbbbbbb\n chk %%r13, 0xcccccccccccccccc\n chk %%r14, 0xdddddddddddddddd\n"
				"chk %%rbp, 0xeeeeeeeeeeeeeeee\n"
				".purgem chk\n"
				"pop %%rbx\n pop %%rbp\n add $128, %%rsp\n mov %%r15, %0\n"
				: "=&a"(wrong)
				:
				: "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
				  "xmm5", "xmm15", "cc", "memory");
			bad += wrong != 0;
			n++;
		}
	}
	result(n, 0, 0, bad);
	return 0;
}

/* A restartable sequence that is long: whether it ended although the kernel had forgotten it. */
#include <sys/rseq.h>
static int rseq(long seconds)
{
	struct rseq *r = (void *)((char *)__builtin_thread_pointer() + __rseq_offset);
	long long end = now_us() + seconds * 1000000;
	long bad = 0, n = 0, aborts = 0;

	if (!__rseq_size)
		die("no rseq");
	ready();
	while (now_us() < end && !told()) {
		unsigned long state = 0;

		asm volatile(
			".pushsection __rseq_cs, \"aw\"\n .balign 32\n"
			"3: .long 0, 0\n .quad 1f, 2f - 1f, 4f\n .popsection\n"
			"lea 3b(%%rip), %%rax\n mov %%rax, 8(%[r])\n"
			"1:\n mov $100000, %%ecx\n"
			"6: dec %%ecx\n jnz 6b\n"
			"cmpq $0, 8(%[r])\n sete %%al\n movzbl %%al, %%eax\n add $1, %%rax\n mov %%rax, %[s]\n" /* 1: right, 2: forgotten */
			"2:\n jmp 5f\n"
			".byte 0x0f, 0xb9, 0x3d\n .long 0x53053053\n"
			"4: movq $3, %[s]\n"
			"5:\n"
			: [s] "=m"(state) : [r] "r"(r) : "rax", "rcx", "cc", "memory");
		*(volatile uint64_t *)((char *)r + 8) = 0;
		n++;
		bad += state == 2;
		aborts += state == 3;
	}
	result(n, 0, aborts, bad);
	return 0;
}
#else
static int registers(long s) { (void)s; die("not here"); return 1; }
static int rseq(long s) { (void)s; die("not here"); return 1; }
#endif

/* Syscall user dispatch: every call of ours is dispatched, none of others'. */
static volatile char selector;
static volatile long dispatched;

static void on_sigsys(int sig, siginfo_t *info, void *ctx)
{
	(void)sig, (void)info, (void)ctx;
	selector = 0;
	dispatched++;
}

static int dispatch(long seconds)
{
	struct sigaction sa = { .sa_sigaction = on_sigsys, .sa_flags = SA_SIGINFO };
	long long end = now_us() + seconds * 1000000;
	struct pollfd p = { 0, POLLIN, 0 };
	long n = 0;
	char c;

	sigaction(SIGSYS, &sa, NULL);
	if (prctl(PR_SET_SYSCALL_USER_DISPATCH, 1, 0L, 0L, &selector))
		die("PR_SET_SYSCALL_USER_DISPATCH");
	ready();
	while (now_us() < end) {
		for (volatile int i = 0; i < 20000; i++)
			;
		selector = 1;
		for (volatile int i = 0; i < 20000; i++)
			;
		syscall(SYS_getppid);
		n++;
		if (n % 64 == 0 && poll(&p, 1, 0) == 1 && read(0, &c, 1) == 1)
			result(n, 0, 0, n - dispatched);
	}
	selector = 0;
	result(n, 0, 0, n - dispatched);
	return 0;
}

/* Whoever calls setns, pidfd_open, mmap or rt_sigprocmask dies. */
static int filtered(void)
{
	struct sock_filter f[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_setns, 2, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 434, 1, 0),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
	};
	struct sock_fprog p = { sizeof(f) / sizeof(*f), f };

	prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
	if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &p))
		die("seccomp");
	return alive();
}

/* A parent that waits for its vfork child, which goes on when it reads. */
static int vfork_parent(void)
{
	pid_t child;
	char c;

	ready();
	child = vfork();
	if (!child) {
		if (read(0, &c, 1) < 0)
			_exit(1);
		_exit(0);
	}
	waitpid(child, NULL, 0);
	result(0, 0, 0, 0);
	return alive();
}

static void *short_lived(void *arg)
{
	return arg;
}

static int churn(void)
{
	pthread_t t[4];

	ready();
	for (;;) {
		for (int i = 0; i < 4; i++)
			if (pthread_create(&t[i], NULL, short_lived, NULL))
				die("pthread_create");
		for (int i = 0; i < 4; i++)
			pthread_join(t[i], NULL);
		shared->word++;
	}
	return 0;
}

static void *churner(void *arg)
{
	for (;;) {
		pthread_t t;

		if (pthread_create(&t, NULL, short_lived, NULL))
			die("pthread_create");
		pthread_join(t, NULL);
	}
	return arg;
}

static int fork_loop(void)
{
	ready();
	for (;;) {
		pid_t child = fork();

		if (!child)
			_exit(7);
		int s;
		if (waitpid(child, &s, 0) != child || !WIFEXITED(s) || WEXITSTATUS(s) != 7)
			die("child");
	}
}

/* Threads whose children live for up to 20 ms, six each at a time: children of children, too. */
static void *parent(void *arg)
{
	pid_t children[6] = { 0 };
	unsigned seed = (unsigned)syscall(SYS_gettid);

	for (int i = 0;; i = (i + 1) % 6) {
		if (children[i] && waitpid(children[i], NULL, 0) != children[i])
			die("waitpid");
		int us = rand_r(&seed) % 20000, twice = rand_r(&seed) % 4 == 0;
		children[i] = fork();
		if (children[i] < 0)
			die("fork");
		if (!children[i]) {
			pid_t child = twice ? fork() : 0;

			usleep(us);
			if (child > 0)
				waitpid(child, NULL, 0);
			_exit(0);
		}
		usleep(us / 8);
	}
	return arg;
}

/* A thread that is not the leader executes this program again, N times. */
static char **arguments;

static void *exec_again(void *arg)
{
	(void)arg;
	execv("/proc/self/exe", arguments);
	die("execv");
	return NULL;
}

static int exec_loop(char **argv)
{
	static char left[16];
	int n = atoi(argv[2]);
	pthread_t t;

	if (argv[3] == NULL)
		ready();
	if (n == 0) {
		result(0, 0, 0, 0);
		return 0;
	}
	snprintf(left, sizeof(left), "%d", n - 1);
	arguments = (char *[]) { argv[0], argv[1], left, "again", NULL };
	threads(4, idle);
	if (pthread_create(&t, NULL, exec_again, NULL))
		die("pthread_create");
	for (;;)
		pause();
}

/* io_uring with a kernel thread that polls. */
static int uring(void)
{
	struct { uint32_t sq, cq, flags, cpu, idle, features, wq, resv[3]; uint64_t off[10]; } p = { 0 };

	p.flags = 2; /* IORING_SETUP_SQPOLL */
	p.idle = 100000;
	if (syscall(425, 4, &p) < 0)
		die("io_uring_setup");
	return alive();
}

/* The stack is used to its last byte below the stack pointer: nobody may write there. */
static int tight_stack(long seconds)
{
	size_t page = 4096;
	char *stack = mmap(NULL, 3 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	long long end = now_us() + seconds * 1000000;
	long n = 0, bad = 0;

	memset(stack, 0x5a, 3 * page);
	ready();
	while (now_us() < end && !told()) {
#ifdef __x86_64__
		unsigned long keep;

		asm volatile("mov %%rsp, %0\n mov %1, %%rsp\n mov $20000, %%ecx\n 1: dec %%ecx\n jnz 1b\n mov %0, %%rsp\n"
			     : "=&r"(keep) : "r"(stack + 2 * page) : "rcx", "cc", "memory");
#endif
		for (size_t i = 0; i < 3 * page; i++)
			bad += stack[i] != 0x5a;
		n++;
	}
	result(n, 0, 0, bad);
	return 0;
}

/* Sleeps in short pieces and spins between, and says whether anything was wrong: the target of injectors that die. */
static int endure(void)
{
	struct sigaction sa = { .sa_sigaction = on_queued, .sa_flags = SA_SIGINFO };
	sigset_t before, after;
	union sigval v;
	long n = 0, bad = 0;
	struct pollfd p = { 0, POLLIN, 0 };
	char c;

	sigaction(SIGRTMIN, &sa, NULL);
	sigprocmask(SIG_BLOCK, NULL, &before);
	ready();
	for (;;) {
		long long start = now_us();
		struct timespec t = { 0, 2000000 };
		long r = syscall(SYS_nanosleep, &t, NULL);

		/* A killed injector may cut a sleep short, with EINTR; it may not let it succeed too early. */
		if (r == 0 ? now_us() - start < 2000 : errno != EINTR)
			bad++;
		sigprocmask(SIG_BLOCK, NULL, &after);
		if (memcmp(&before, &after, 8))
			bad += 1000;
		v.sival_int = last_value + 1;
		if (sigqueue(getpid(), SIGRTMIN, v) == 0 && last_value != v.sival_int)
			bad += 1000000;
		for (volatile int i = 0; i < 20000; i++)
			;
		n++;
		if (poll(&p, 1, 0) == 1) {
			if (read(0, &c, 1) != 1)
				return 0;
			dprintf(1, "R %ld 0 0 %ld\n", n, bad + bad_order);
		}
	}
}

/* Writes to a file whenever it is told to, and says what write(2) returned. */
static int writer(const char *file)
{
	int fd = open(file, O_WRONLY);
	char c;

	if (fd < 0)
		die(file);
	ready();
	while (read(0, &c, 1) == 1) {
		long r = write(fd, "12345", 5);
		int e = errno;

		result(r, e, 0, 0);
	}
	return 0;
}

/* Threads that use the groups a and b of a mount, each of which moves the whole process; all at once, until it is told to end. */
static const char *hierarchy;
static atomic_long requests, refused;
static atomic_int refusal, over;

static void count(int failed)
{
	atomic_fetch_add(&requests, 1);
	if (failed) {
		atomic_fetch_add(&refused, 1);
		refusal = errno;
	}
}

/* Opens, writes or reads, closes. */
static void use(const char *file, int write_zero)
{
	char path[512], text[4096];
	int fd;

	snprintf(path, sizeof(path), "%s/%s", hierarchy, file);
	fd = open(path, write_zero ? O_WRONLY : O_RDONLY);
	count(fd < 0 || (write_zero ? write(fd, "0", 1) != 1 : read(fd, text, sizeof(text)) < 0));
	if (fd >= 0)
		close(fd);
}

static void *client(void *arg)
{
	pid_t me = syscall(SYS_gettid);
	char own[512];

	(void)arg;
	snprintf(own, sizeof(own), "%s/of-%d", hierarchy, me);
	for (int i = me; !over; i++) {
		use(i & 1 ? "a/cgroup.procs" : "b/cgroup.procs", 1);
		use(i & 1 ? "b/tasks" : "a/tasks", 0);
		count(mkdir(own, 0755));
		count(rmdir(own));
	}
	return NULL;
}

static int clients(int n, const char *dir)
{
	pthread_t t[64];

	hierarchy = dir;
	for (int i = 0; i < n; i++)
		if (pthread_create(&t[i], NULL, client, NULL))
			die("pthread_create");
	ready();
	while (!told())
		usleep(1000);
	over = 1;
	for (int i = 0; i < n; i++)
		pthread_join(t[i], NULL);
	dprintf(1, "R %ld %d 0 %ld\n", requests, refusal, refused);
	return 0;
}

/* A child that is no thread and shares root and working directory, as sandboxes make them. */
static int idle_child(void *arg)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	idle(arg);
	return 0;
}

static int fs_child(void)
{
	static char stack[65536] __attribute__((aligned(16)));

	if (clone(idle_child, stack + sizeof(stack), CLONE_FS | SIGCHLD, NULL) < 0)
		die("clone");
	return alive();
}

static void *dead_leader(void *arg)
{
	(void)arg;
	usleep(20000);
	alive();
	_exit(0);
}

int main(int argc, char **argv)
{
	const char *mode = argc > 1 ? argv[1] : "";
	long n = argc > 2 ? atol(argv[2]) : 1;

	setvbuf(stdout, NULL, _IONBF, 0);
	shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	shared->parent = getpid();
	if (!strcmp(mode, "call"))
		return do_call(argv[2], argc > 3 ? atoi(argv[3]) : 1);
	if (!strcmp(mode, "holder")) {
		if (unshare(strtoul(argv[2], NULL, 16)))
			die("unshare");
		return alive();
	}
	if (!strcmp(mode, "idle")) {
		threads(n, idle);
		return alive();
	}
	if (!strcmp(mode, "busy")) {
		threads(n, busy);
		return alive();
	}
	if (!strcmp(mode, "chain")) {
		chain(n);
		return alive();
	}
	if (!strcmp(mode, "own-files") || !strcmp(mode, "apart")) {
		threads(n, *mode == 'o' ? idle_own_files : idle_apart);
		while (shared->word < n - 1)
			usleep(1000);
		return alive();
	}
	if (!strcmp(mode, "weak") || !strcmp(mode, "full")) {
		victim = atoi(argv[3]);
		threads(n, *mode == 'w' ? idle_weak : idle_full);
		while (shared->word < n - 1 + 1000)
			usleep(1000);
		shared->word = shared->id;
		return alive();
	}
	if (!strcmp(mode, "dead-leader")) {
		threads(n, idle);
		threads(2, dead_leader);
		pthread_exit(NULL);
	}
	if (!strcmp(mode, "writer")) {
		if (argc > 3)
			threads(atoi(argv[3]), busy);
		return writer(argv[2]);
	}
	if (!strcmp(mode, "clients"))
		return clients(n, argv[3]);
	if (!strcmp(mode, "signals"))
		return signals(n);
	if (!strcmp(mode, "sent"))
		return sent(n);
	if (!strcmp(mode, "awaited"))
		return awaited(n);
	if (!strcmp(mode, "registers"))
		return registers(n);
	if (!strcmp(mode, "rseq"))
		return rseq(n);
	if (!strcmp(mode, "dispatch"))
		return dispatch(n);
	if (!strcmp(mode, "filtered"))
		return filtered();
	if (!strcmp(mode, "vfork"))
		return vfork_parent();
	if (!strcmp(mode, "churn"))
		return churn();
	if (!strcmp(mode, "churn-alive")) {
		threads(n, churner);
		return alive();
	}
	if (!strcmp(mode, "family")) {
		threads(n, parent);
		return alive();
	}
	if (!strcmp(mode, "fs-child"))
		return fs_child();
	if (!strcmp(mode, "fork"))
		return fork_loop();
	if (!strcmp(mode, "exec"))
		return exec_loop(argv);
	if (!strcmp(mode, "uring"))
		return uring();
	if (!strcmp(mode, "tight-stack"))
		return tight_stack(n);
	if (!strcmp(mode, "endure"))
		return endure();
	die(mode);
	return 1;
}
