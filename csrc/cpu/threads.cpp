// The threads behind parallel_for: a team from outside where one was given, else a pool. The pool's threads wait on a
// condition variable and never spin; it is never destroyed, since its threads may outlive the main one.
#include "threads.h"

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>

#if defined(__SSE2__)
#include <immintrin.h>
#endif
#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#include <signal.h>
#define TSS_POSIX 1
#endif

namespace tss {
namespace {

constexpr int most_workers = 255;

// The treatment of denormals is a setting of each thread; all of them must use the caller's.
unsigned float_mode() {
#if defined(__SSE2__)
    return _mm_getcsr();
#else
    return 0;
#endif
}

void set_float_mode(unsigned mode) {
#if defined(__SSE2__)
    _mm_setcsr(mode);
#else
    (void)mode;
#endif
}

// One call of parallel_for, on the caller's stack. All members but `next` are guarded by the pool's mutex.
struct Job {
    Body body;
    void* context;
    int64_t units, grain;
    unsigned mode;
    int openings;  // workers that may still join
    int working = 0;
    Job* following = nullptr;
    std::atomic<int64_t> next{0};

    void work() {
        for (;;) {
            const int64_t begin = next.fetch_add(grain, std::memory_order_relaxed);
            if (begin >= units) return;
            body(context, begin, begin + grain < units ? begin + grain : units);
        }
    }
};

class Pool {
public:
    void run(Job& job) {
        {
            std::unique_lock<std::mutex> lock(mutex_);
            hire(job.openings);
            job.following = first_;
            first_ = &job;
        }
        for (int i = 0; i < job.openings; ++i) wake_.notify_one();
        job.work();
        std::unique_lock<std::mutex> lock(mutex_);
        Job** link = &first_;
        while (*link != &job) link = &(*link)->following;
        *link = job.following;
        done_.wait(lock, [&job] { return job.working == 0; });
    }

private:
    // Start workers until there are `wanted`. If the system allows fewer, all work still gets done.
    void hire(int wanted) {
        if (workers_ >= wanted) return;
#ifdef TSS_POSIX
        sigset_t all, before;
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before);  // workers take no signals: Python's threads handle them
#endif
        try {
            for (; workers_ < wanted; ++workers_) std::thread(&Pool::serve, this).detach();
        } catch (const std::system_error&) {
        }
#ifdef TSS_POSIX
        pthread_sigmask(SIG_SETMASK, &before, nullptr);
#endif
    }

    Job* open_job() {
        Job* job = first_;
        while (job != nullptr && job->openings == 0) job = job->following;
        return job;
    }

    void serve() {
        std::unique_lock<std::mutex> lock(mutex_);
        for (;;) {
            Job* job = open_job();
            if (job == nullptr) {
                wake_.wait(lock);
                continue;
            }
            --job->openings;
            ++job->working;
            lock.unlock();
            set_float_mode(job->mode);
            job->work();
            lock.lock();
            if (--job->working == 0) done_.notify_all();
        }
    }

    std::mutex mutex_;
    std::condition_variable wake_, done_;
    Job* first_ = nullptr;
    int workers_ = 0;
};

std::atomic<Pool*> shared{nullptr};
std::atomic<Team> team{nullptr};

Pool& pool() {
    Pool* current = shared.load(std::memory_order_acquire);
    if (current == nullptr) {
        Pool* made = new Pool;
        if (shared.compare_exchange_strong(current, made, std::memory_order_acq_rel)) return *made;
        delete made;
    }
    return *current;
}

#ifdef TSS_POSIX
// A forked child has the pool's memory but none of its threads, and its mutex may be locked: the child starts a new
// pool. It drops the team too, which would wait for threads that do not exist there.
[[maybe_unused]] const int registered = pthread_atfork(nullptr, nullptr, [] {
    shared.store(nullptr, std::memory_order_release);
    team.store(nullptr, std::memory_order_release);
});
#endif

// The work of one thread of a team, with the caller's treatment of denormals; its own is restored afterwards.
void work_in_team(void* data) {
    Job& job = *static_cast<Job*>(data);
    const unsigned own = float_mode();
    set_float_mode(job.mode);
    job.work();
    set_float_mode(own);
}

}  // namespace

void parallel_for(int64_t units, int64_t grain, int threads, Body body, void* context) {
    const int64_t pieces = (units + grain - 1) / grain;
    int64_t workers = (pieces < threads ? pieces : threads) - 1;
    if (workers > most_workers) workers = most_workers;
    if (workers <= 0) {
        if (units > 0) body(context, 0, units);
        return;
    }
    Job job{body, context, units, grain, float_mode(), static_cast<int>(workers)};
    if (const Team given = team.load(std::memory_order_acquire))
        // Of its usual size even where fewer threads would do: a team of another size ends threads and starts new ones.
        given(work_in_team, &job, static_cast<unsigned>(threads), 0);
    else
        pool().run(job);
}

void use_team(Team given) { team.store(given, std::memory_order_release); }

}  // namespace tss
