/*
 * A process in a storm of its own making.
 *
 *   storm KIND CREATORS RING EPOCHS
 *
 * CREATORS threads make threads or children without end, and each keeps the last RING of them alive. KIND says what the
 * creators make: t threads; f children; e children made by threads that exit at once; d children of children that exit at once;
 * m threads and children in turn; n nothing. EPOCHS is a file of ints, one per creator, which the test counts up around each of its moves: what a
 * creator found there before and after a birth tells where the creator was.
 *
 * Commands come on stdin, one per line, and each is answered by one line on stdout:
 *   go, stop        the storm; stop answers with the number of births when all creators are at rest
 *   creators        their tids
 *   list            ID:CREATOR:BEFORE:AFTER of all that is alive
 *   spawn N, cull   the first thread makes N children with three more threads each; kills and reaps all
 *
 *   storm reuse DIR ROUNDS    pids of dead members of DIR/g are taken by strangers
 *   storm move DIR ROUNDS     moves itself between DIR/a and DIR/b in its own storm of threads
 *
 * Everything ends when stdin does.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include <dirent.h>

#define MAX_CREATORS 16
#define MAX_RING 64
#define MAX_CHILDREN 1000
#define TIDS 4

struct birth {
	pid_t id;                       /* 0 = none */
	int is_thread, before, after;
	pthread_t thread;
	sem_t born, end;
};

static struct creator {
	pthread_t thread;
	pid_t tid;
	int nr, next;
	struct birth ring[MAX_RING];
} creators[MAX_CREATORS];

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static int nr_creators, ring_size, parked;
static char kind;
static atomic_int running;
static atomic_long births;
static volatile int *epochs;
static int life[2];                     /* nobody writes: EOF tells the children that we died */
static pthread_attr_t small;

static pid_t self(void) { return syscall(SYS_gettid); }

static void die(const char *what)
{
	dprintf(2, "storm: %s: %s\n", what, strerror(errno));
	_exit(1);
}

static void *wait_for_end(void *arg)
{
	struct birth *b = arg;

	b->id = self();
	sem_post(&b->born);
	while (sem_wait(&b->end) < 0)
		;
	return NULL;
}

static pid_t fork_waiting(void)
{
	pid_t child = fork();

	if (child == 0) {
		char c;

		close(0);
		close(1);
		close(life[1]);
		while (read(life[0], &c, 1) != 0)
			;
		_exit(0);
	}
	if (child < 0)
		die("fork");
	return child;
}

static void *fork_and_exit(void *arg)
{
	((struct birth *)arg)->id = fork_waiting();
	return NULL;
}

/* The child of a child that has exited; we are told who it is, and adopt it. */
static pid_t fork_twice(void)
{
	int fds[2];
	pid_t id;

	if (pipe2(fds, O_CLOEXEC) < 0)
		die("pipe");
	pid_t middle = fork();
	if (middle < 0)
		die("fork");
	if (middle == 0) {
		id = fork_waiting();
		_exit(write(fds[1], &id, sizeof id) != sizeof id);
	}
	close(fds[1]);
	if (read(fds[0], &id, sizeof id) != sizeof id)
		die("a grandchild");
	close(fds[0]);
	waitpid(middle, NULL, 0);
	return id;
}

static void bury(struct birth *b)
{
	if (!b->id)
		return;
	if (b->is_thread) {
		sem_post(&b->end);
		pthread_join(b->thread, NULL);
	} else {
		kill(b->id, SIGKILL);
		waitpid(b->id, NULL, 0);
	}
	b->id = 0;
}

static void bear(struct creator *c)
{
	struct birth *b = &c->ring[c->next++ % ring_size];

	bury(b);
	b->is_thread = kind == 't' || (kind == 'm' && c->nr % 2);
	b->before = epochs[c->nr];
	if (b->is_thread) {
		sem_init(&b->born, 0, 0);
		sem_init(&b->end, 0, 0);
		if (pthread_create(&b->thread, &small, wait_for_end, b))
			die("pthread_create");
		while (sem_wait(&b->born) < 0)
			;
	} else if (kind == 'e') {
		if (pthread_create(&b->thread, &small, fork_and_exit, b))
			die("pthread_create");
		pthread_join(b->thread, NULL);
	} else {
		b->id = kind == 'd' ? fork_twice() : fork_waiting();
	}
	b->after = epochs[c->nr];
	births++;
	/* Without a pause, exits of threads keep whoever looks into /proc busy in the kernel (shrink_dcache_parent) for minutes. */
	usleep(300);
}

static void *create(void *arg)
{
	struct creator *c = arg;

	c->tid = self();
	for (;;) {
		if (!running) {
			pthread_mutex_lock(&lock);
			parked++;
			pthread_cond_broadcast(&changed);
			while (!running)
				pthread_cond_wait(&changed, &lock);
			parked--;
			pthread_cond_broadcast(&changed);
			pthread_mutex_unlock(&lock);
		}
		bear(c);
	}
	return NULL;
}

static void go(void)
{
	pthread_mutex_lock(&lock);
	running = 1;
	pthread_cond_broadcast(&changed);
	while (parked)
		pthread_cond_wait(&changed, &lock);
	pthread_mutex_unlock(&lock);
}

static void stop(void)
{
	pthread_mutex_lock(&lock);
	running = 0;
	while (parked < nr_creators)
		pthread_cond_wait(&changed, &lock);
	pthread_mutex_unlock(&lock);
}

static void start(char what, int n, int ring)
{
	kind = what;
	nr_creators = n;
	ring_size = ring;
	if (kind == 'd')
		prctl(PR_SET_CHILD_SUBREAPER, 1);
	if (pipe2(life, O_CLOEXEC) < 0)
		die("pipe");
	pthread_attr_init(&small);
	pthread_attr_setstacksize(&small, 65536);
	for (int i = 0; i < n; i++) {
		creators[i].nr = i;
		if (pthread_create(&creators[i].thread, &small, create, &creators[i]))
			die("pthread_create");
	}
	stop();
}

static void list(void)
{
	printf("ok");
	for (int i = 0; i < nr_creators; i++)
		for (int j = 0; j < ring_size; j++) {
			struct birth *b = &creators[i].ring[j];
			if (b->id)
				printf(" %d:%d:%d:%d", b->id, creators[i].tid, b->before, b->after);
		}
	printf("\n");
}

/* ---- children with threads, made and ended in masses */

static pid_t children[MAX_CHILDREN];
static int nr_children;

static void *tell_and_wait(void *arg)
{
	pid_t me = self();

	if (write((int)(long)arg, &me, sizeof me) != sizeof me)
		_exit(1);
	for (;;)
		pause();
	return NULL;
}

static void spawn(int n)
{
	printf("ok");
	for (nr_children = 0; nr_children < n && nr_children < MAX_CHILDREN; nr_children++) {
		int fds[2];
		pid_t tids[TIDS];

		fflush(stdout);
		if (pipe2(fds, O_CLOEXEC) < 0)
			die("pipe");
		pid_t child = fork();
		if (child < 0)
			die("fork");
		if (child == 0) {
			pthread_t t;
			char c;

			close(0);
			close(1);
			close(life[1]);
			for (int i = 1; i < TIDS; i++)
				pthread_create(&t, &small, tell_and_wait, (void *)(long)fds[1]);
			pid_t me = self();
			if (write(fds[1], &me, sizeof me) != sizeof me)
				_exit(1);
			while (read(life[0], &c, 1) != 0)
				;
			_exit(0);
		}
		children[nr_children] = child;
		for (int i = 0; i < TIDS; i++) {
			if (read(fds[0], &tids[i], sizeof tids[i]) != sizeof tids[i])
				die("a child's tids");
			printf(" %d", tids[i]);
		}
		close(fds[0]);
		close(fds[1]);
	}
	printf("\n");
}

static void cull(void)
{
	for (int i = 0; i < nr_children; i++)
		kill(children[i], SIGKILL);
	for (int i = 0; i < nr_children; i++)
		waitpid(children[i], NULL, 0);
	printf("ok %d\n", nr_children);
	nr_children = 0;
}

static void obey(void)
{
	char line[64];

	printf("ok %d\n", getpid());
	fflush(stdout);
	while (fgets(line, sizeof line, stdin)) {
		if (!strcmp(line, "go\n")) {
			go();
			printf("ok 0\n");
		} else if (!strcmp(line, "stop\n")) {
			stop();
			printf("ok %ld\n", births);
		} else if (!strcmp(line, "creators\n")) {
			printf("ok");
			for (int i = 0; i < nr_creators; i++)
				printf(" %d", creators[i].tid);
			printf("\n");
		} else if (!strcmp(line, "list\n")) {
			list();
		} else if (!strncmp(line, "spawn ", 6)) {
			spawn(atoi(line + 6));
		} else if (!strcmp(line, "cull\n")) {
			cull();
		} else {
			printf("err %d\n", ENOSYS);
		}
		fflush(stdout);
	}
	_exit(0);
}

/* ---- files */

static const char *dir;

static void put(const char *file, const char *text)
{
	char path[4096];

	snprintf(path, sizeof path, "%s/%s", dir, file);
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd < 0 || write(fd, text, strlen(text)) < 0)
		die(path);
	close(fd);
}

static void put_nr(const char *file, int nr)
{
	char text[16];

	snprintf(text, sizeof text, "%d", nr);
	put(file, text);
}

/* How often `id` stands in a list; -1 counts all. */
static int listed(const char *file, pid_t id)
{
	char path[4096];
	int nr, n = 0;

	snprintf(path, sizeof path, "%s/%s", dir, file);
	FILE *f = fopen(path, "re");
	if (!f)
		die(path);
	while (fscanf(f, "%d", &nr) == 1)
		n += id < 0 || nr == id;
	if (ferror(f))
		die(path);
	fclose(f);
	return n;
}

static unsigned long long started(pid_t tid)
{
	char path[64], stat[1024], *p;
	unsigned long long t;

	snprintf(path, sizeof path, "/proc/%d/task/%d/stat", tid, tid);
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		die(path);
	ssize_t n = read(fd, stat, sizeof stat - 1);
	close(fd);
	stat[n > 0 ? n : 0] = 0;
	p = strrchr(stat, ')');
	if (!p || sscanf(p, ") %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %*d %*d %llu", &t) != 1)
		die("stat");
	return t;
}

static int cpus_of(pid_t tid)
{
	cpu_set_t set;

	if (sched_getaffinity(tid, sizeof set, &set) < 0)
		die("sched_getaffinity");
	return CPU_COUNT(&set);
}

/* ---- reuse */

static void one(struct birth *b, int thread)
{
	b->is_thread = thread;
	if (thread) {
		sem_init(&b->born, 0, 0);
		sem_init(&b->end, 0, 0);
		if (pthread_create(&b->thread, &small, wait_for_end, b))
			die("pthread_create");
		while (sem_wait(&b->born) < 0)
			;
	} else {
		b->id = fork_waiting();
	}
}

/* A joined thread's pid is free some instructions after the join. */
static void bury_well(struct birth *b)
{
	pid_t id = b->id;

	bury(b);
	while (b->is_thread && syscall(SYS_tgkill, getpid(), id, 0) == 0)
		sched_yield();
}

/*
 * One round: a member dies and a stranger gets its pid. It must not be shown, nor re-pinned, nor keep the group.
 * What is not told apart by its start time, in clock ticks, is counted and not judged.
 */
static void reuse(int rounds)
{
	static struct birth member, stranger;
	int all = cpus_of(0), forks = 0, judged = 0, ticks = 0, missed = 0, repinned = 0, shown = 0, kept = 0;

	for (int round = 0; round < rounds; round++) {
		int bits = round;
		one(&member, bits & 1);
		pid_t id = member.id;
		put_nr(bits & 2 ? "g/tasks" : "g/cgroup.procs", id);
		/* The main thread shares the process of a member that is a thread. */
		int others = (bits & 1) && !(bits & 2);
		if (listed("g/tasks", id) != 1)
			die("the member is not listed");
		if (others)
			put_nr("cgroup.procs", getpid()), put_nr("g/tasks", id);
		unsigned long long then = started(id);
		bury_well(&member);
		if (bits & 8)
			listed("g/tasks", -1);
		/* Somebody else may get it, and keep it. */
		for (int i = 0; i < 2000; i++) {
			one(&stranger, !!(bits & 4));
			forks++;
			if (stranger.id == id)
				break;
			bury_well(&stranger);
			/* The server must look at least once in a lap. */
			if (i % 40 == 39)
				listed("g/tasks", -1);
		}
		if (stranger.id != id) {
			missed++;
			continue;
		}
		if (started(id) == then) {
			ticks++;
		} else {
			judged++;
			if (bits & 16)
				put("g/cpuset.cpus", round & 32 ? "0" : "1");
			shown += listed("g/tasks", id) + listed("g/cgroup.procs", getpid());
			put("g/cpuset.cpus", "0");
			put("g/cpuset.cpus", "1");
			repinned += cpus_of(id) != all;
			char path[4096];
			snprintf(path, sizeof path, "%s/g", dir);
			kept += rmdir(path) < 0;
			if (mkdir(path, 0755) < 0 && errno != EEXIST)
				die("mkdir");
			put("g/cpuset.mems", "0");
			put("g/cpuset.cpus", "0");
		}
		bury_well(&stranger);
	}
	printf("rounds=%d forks=%d judged=%d same_tick=%d missed=%d shown=%d repinned=%d kept=%d\n", rounds, forks, judged, ticks, missed, shown, repinned, kept);
	fflush(stdout);
	_exit(shown || repinned || kept);
}

/* ---- move */

/* The threads of this process, and how many of them have other CPUs than `cpus` of them. */
static int threads(int cpu, int *wrong)
{
	DIR *d = opendir("/proc/self/task");
	struct dirent *e;
	int n = 0;

	*wrong = 0;
	while ((e = readdir(d))) {
		pid_t tid = atoi(e->d_name);
		cpu_set_t set;

		if (!tid || sched_getaffinity(tid, sizeof set, &set) < 0)
			continue;
		n++;
		*wrong += CPU_COUNT(&set) != 1 || !CPU_ISSET(cpu, &set);
	}
	closedir(d);
	return n;
}

static void move(int rounds)
{
	int left = 0, missing = 0, late = 0, never = 0, wrong;

	for (int round = 0; round < rounds; round++) {
		int b = round % 2;

		go();
		put(b ? "b/cgroup.procs" : "a/cgroup.procs", "0");
		stop();
		left += listed(b ? "a/tasks" : "b/tasks", -1);
		int n = threads(b, &wrong);
		missing += n - listed(b ? "b/tasks" : "a/tasks", -1);
		late += wrong;
		for (int i = 0; wrong && i < 20000; i++) {
			usleep(1000);
			threads(b, &wrong);
		}
		never += wrong;
	}
	printf("rounds=%d births=%ld left_behind=%d missing=%d late=%d never=%d\n", rounds, births, left, missing, late, never);
	fflush(stdout);
	_exit(left || missing || never);
}

int main(int argc, char **argv)
{
	static int none[MAX_CREATORS];

	signal(SIGPIPE, SIG_IGN);
	/* Where there is less CPU than work, the server must not be left behind for ever. */
	setpriority(PRIO_PROCESS, 0, 10);
	if (argc < 4)
		return 2;
	epochs = none;
	dir = argv[2];
	if (!strcmp(argv[1], "reuse")) {
		start('n', 0, 1);
		reuse(atoi(argv[3]));
	}
	if (!strcmp(argv[1], "move")) {
		start('t', 4, 8);
		move(atoi(argv[3]));
	}
	if (argc < 5)
		return 2;
	int fd = open(argv[4], O_RDWR | O_CLOEXEC);
	epochs = mmap(NULL, sizeof none, PROT_READ, MAP_SHARED, fd, 0);
	if (fd < 0 || epochs == MAP_FAILED)
		die(argv[4]);
	start(argv[1][0], atoi(argv[2]), atoi(argv[3]));
	obey();
}
