/* The protocol in short, for Spin: one task, two workers, a reaper, a reconciler, the pump, time; one process
 * may die anywhere once, and Redis may lose all once.
 *
 * protocol.py is the fuller model; this one adds fairness. Under weak fairness (a process that can go on for
 * ever does go on) every accepted task ends, and what has succeeded has succeeded for good:
 *
 *   spin -a protocol.pml && gcc -O2 -o pan pan.c && ./pan -a -f -N ends && ./pan -a -f -N stays
 *
 * -DNO_REAPER, -DNO_RECONCILER: nobody does that work. -DNO_FENCE: a settle does not ask whether its attempt
 * still holds the row. Each breaks one of the two.
 */

#define WORKERS 2
#define MAX_RETRIES 1
#define MAX_LOSSES 1

mtype:status = { none, queued, running, retrying, succeeded, dead }
mtype:where = { gone, ready, later, held }

/* The row. */
mtype:status status = none;
byte attempts, failures, losses, row_token;
bool lapsed;

/* Redis: where the id is, and what `live` says: UNKNOWN, FREE, or the token of a lease. */
#define UNKNOWN 0
#define FREE 1
byte q, leases, retry, live = UNKNOWN;

/* Whoever knows of a token: a new one is none of these. */
byte worker_token[WORKERS], reaper_token, reconciler_token;

byte deaths = 1;

#define claimable (status == queued || status == retrying)
#define terminal (status == succeeded || status == dead)
#define in_use(t) (t == live || t == row_token || t == worker_token[0] || t == worker_token[1] || \
                   t == reaper_token || t == reconciler_token)

ltl ends { [] (status != none -> <> terminal) }
ltl stays { [] (status == succeeded -> [] (status == succeeded)) }

inline fresh(t) {
    t = FREE + 1;
    do
    :: in_use(t) -> t++
    :: else -> break
    od
}

inline push() {
    if
    :: live == UNKNOWN -> live = FREE; q++
    :: else
    fi
}

inline place(t, to, new_token) {
    if
    :: t > FREE && live == t ->
        leases = 0;
        if
        :: to == gone -> live = UNKNOWN
        :: to == ready -> live = FREE; q++
        :: to == later -> live = FREE; retry = 1
        :: to == held -> live = new_token; leases = 1
        fi
    :: else
    fi
}

/* Where the row says that its id belongs. */
inline look(to, new_token) {
    new_token = row_token;
    if
    :: status == running -> to = held
    :: claimable -> to = ready
    :: else -> to = gone
    fi
}

inline ended(as) {
    status = as; row_token = 0; lapsed = false
}

inline settle_failure() {
    failures++;
    if
    :: failures <= MAX_RETRIES -> ended(retrying)
    :: else -> ended(dead)
    fi
}

#define DIES atomic { deaths > 0 -> deaths--; goto died }

active proctype Client() {
    status = queued;
    if
    :: DIES
    :: atomic { true -> push() }
    fi;
died:
    skip
}

active [WORKERS] proctype Worker() {
    byte me = _pid - 1, attempt, new_token;
    mtype:where to;
died:
    worker_token[me] = 0;
end_idle:
    atomic { q > 0 -> fresh(new_token); worker_token[me] = new_token; new_token = 0; q--; leases = 1; live = worker_token[me] }
    if
    :: DIES
    :: atomic { true ->
        if
        :: claimable ->
            status = running; attempts++; attempt = attempts; row_token = worker_token[me]; goto holding
        :: else
        fi }
    fi;
    /* Refused: the row is read after the claim. If it may be claimed now, the reaper will see. */
    atomic { look(to, new_token); if :: to == ready -> to = 0; new_token = 0; goto died :: else fi }
    if
    :: DIES
    :: atomic { true -> place(worker_token[me], to, new_token); to = 0; new_token = 0; goto died }
    fi;
holding:
    if
    :: DIES
    :: atomic { true ->
#ifndef NO_FENCE
        if
        :: status != running || attempts != attempt -> attempt = 0; goto died
        :: else
        fi;
#endif
        attempt = 0;
        if
        :: ended(succeeded)
        :: settle_failure()
        fi;
        if
        :: status == retrying -> to = later
        :: else -> to = gone
        fi }
    fi;
    if
    :: DIES
    :: atomic { true -> place(worker_token[me], to, new_token); to = 0; goto died }
    fi
}

#ifndef NO_REAPER
active proctype Reaper() {
    byte new_token;
    mtype:where to;
died:
    atomic { reaper_token = 0; to = 0; new_token = 0 }
end_idle:
    atomic { leases > 0 && live > FREE -> reaper_token = live }
    if
    :: DIES
    :: atomic { status == running && lapsed ->
        losses++;
        if
        :: losses <= MAX_LOSSES -> ended(queued)
        :: else -> ended(dead)
        fi }
    :: atomic { !(status == running && lapsed) }
    fi;
    atomic { look(to, new_token) }
    if
    :: DIES
    :: atomic { true -> place(reaper_token, to, new_token); goto died }
    fi
}
#endif

#ifndef NO_RECONCILER
active proctype Reconciler() {
    bool waiting;
died:
    atomic { reconciler_token = 0; waiting = false }
end_idle:
    /* A pass over the open rows; it has something to do only if Redis lacks the id. */
    atomic { live == UNKNOWN && (claimable || status == running) -> reconciler_token = row_token; waiting = claimable }
    if
    :: DIES
    :: atomic { waiting -> push(); goto died }
    :: atomic { !waiting ->
        if
        :: live == UNKNOWN -> live = reconciler_token; leases = 1
        :: else
        fi;
        goto died }
    fi
}
#endif

active proctype Pump() {
end_idle:
    do
    :: atomic { retry > 0 -> retry = 0; q++ }
    od
}

active proctype Time() {
end_idle:
    do
    :: atomic { status == running && !lapsed -> lapsed = true }
    od
}

active proctype Fault() {
    if
    :: atomic { true -> q = 0; leases = 0; retry = 0; live = UNKNOWN }
    :: skip
    fi
}
