/* The protocol in short, for Spin: one task, two workers, a reaper, a reconciler, the pump, time; and one
 * fault: a process dies anywhere, or Redis loses all.
 *
 * protocol.py is the fuller model; this one adds fairness. Under weak fairness (who can go on for ever does
 * go on) every accepted task ends, and what has succeeded has succeeded for good:
 *
 *   spin -a protocol.pml && gcc -O2 -DNFAIR=3 -o pan pan.c && ./pan -a -f -N ends && ./pan -a -N stays
 *
 * -DNO_REAPER, -DNO_RECONCILER: nobody does that work. -DNO_FENCE: a settle does not ask whether its attempt
 * still holds the row. Each breaks one of the two.
 *
 * A worker's token is its number. So tokens come again, which the protocol forbids: the harder case.
 */

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

byte faults = 1;

#define claimable (status == queued || status == retrying)
#define terminal (status == succeeded || status == dead)

ltl ends { [] (status != none -> <> terminal) }
ltl stays { [] (status == succeeded -> [] (status == succeeded)) }

inline push() {
    if
    :: live == UNKNOWN -> live = FREE; q++
    :: else
    fi
}

inline place(t, to, new_token) {
    if
    :: live == t ->
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

#define DIES atomic { faults > 0 -> faults--; goto idle }

active proctype Client() {
    status = queued;
    if
    :: DIES
    :: atomic { true -> push() }
    fi;
idle:
    skip
}

active [2] proctype Worker() {
    byte token = FREE + _pid, attempt, new_token;
    mtype:where to;
idle:
    atomic { attempt = 0; new_token = 0; to = 0 }
end:
    atomic { q > 0 -> q--; leases = 1; live = token }
    if
    :: DIES
    :: atomic { claimable ->
        status = running; attempts++; attempt = attempts; row_token = token; goto holding }
    :: atomic { !claimable }
    fi;
    /* Refused: the row is read after the claim. If it may be claimed by now, the reaper will see. */
    atomic { look(to, new_token); if :: to == ready -> goto idle :: else fi }
    if
    :: DIES
    :: atomic { true -> place(token, to, new_token); goto idle }
    fi;
holding:
    if
    :: DIES
#ifndef NO_FENCE
    :: atomic { !(status == running && attempts == attempt) -> goto idle }
    :: atomic { status == running && attempts == attempt ->
#else
    :: atomic { true ->
#endif
        attempt = 0;
        if
        :: ended(succeeded); to = gone
        :: failures < MAX_RETRIES -> failures++; ended(retrying); to = later
        :: failures == MAX_RETRIES -> ended(dead); to = gone
        fi }
    fi;
    if
    :: DIES
    :: atomic { true -> place(token, to, new_token); goto idle }
    fi
}

#ifndef NO_REAPER
active proctype Reaper() {
    byte token, new_token;
    mtype:where to;
idle:
    atomic { token = 0; new_token = 0; to = 0 }
end:
    atomic { leases > 0 && live > FREE -> token = live }
    if
    :: DIES
    :: atomic { status == running && lapsed ->
        if
        :: losses < MAX_LOSSES -> losses++; ended(queued)
        :: else -> ended(dead)
        fi }
    :: atomic { !(status == running && lapsed) }
    fi;
    atomic { look(to, new_token) }
    if
    :: DIES
    :: atomic { true -> place(token, to, new_token); goto idle }
    fi
}
#endif

#ifndef NO_RECONCILER
active proctype Reconciler() {
    byte token;
    bool waiting;
idle:
    atomic { token = 0; waiting = false }
end:
    /* A look at the open row, where it makes a difference: Redis lacks the id. */
    atomic { live == UNKNOWN && (claimable || status == running) -> token = row_token; waiting = claimable }
    if
    :: DIES
    :: atomic { waiting -> push(); goto idle }
    :: atomic { !waiting ->
        if
        :: live == UNKNOWN -> live = token; leases = 1
        :: else
        fi;
        goto idle }
    fi
}
#endif

active proctype Pump() {
end:
    do
    :: atomic { retry > 0 -> retry = 0; q++ }
    od
}

active proctype Time() {
end:
    do
    :: atomic { status == running && !lapsed -> lapsed = true }
    od
}

active proctype Fault() {
    if
    :: atomic { faults > 0 -> faults--; q = 0; leases = 0; retry = 0; live = UNKNOWN }
    :: true
    fi
}
