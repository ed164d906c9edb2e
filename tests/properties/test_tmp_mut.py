import importlib.util, sys, hashlib
import pytest
spec = importlib.util.spec_from_file_location("machine_module", "/work/main/tests/properties/test_protocol_machine.py")
m = importlib.util.module_from_spec(spec); sys.modules["machine_module"]=m; spec.loader.exec_module(m)
machine = m.machine
from scheduler import store, queue
SQL=[("settle","AND t.attempts = d.attempt",""),("reap","AND t.lease_expires_at <= now()",""),("claim","AND t.due_at <= now()",""),("redrive","losses = 0,",""),("cancel","WHERE status = 'running'","WHERE true"),("note_late","AND r.late_outcome IS NULL","")]
LUA=[("push","if not known[i] and not seen[id] then","if not seen[id] then"),("place","if owners[i] == group.token and not seen[id] then","if owners[i] and not seen[id] then"),("adopt","if not known[i] and not seen[id] and token ~= '' then","if not seen[id] and token ~= '' then"),("dlq_add","if not known[i] then","if true then"),("forget","redis.call('HDEL', live, unpack(dropped))","redis.call('HLEN', live)")]
@pytest.mark.timeout(400)
@pytest.mark.parametrize("where,name,a,b",[("sql",*x) for x in SQL]+[("lua",*x) for x in LUA])
def test_mut(machine, monkeypatch, where,name,a,b):
    if where=="sql":
        orig=store.statement
        def st(n, w=""):
            t=orig(n,w)
            if n==name: assert a in t, (a,t); t=t.replace(a,b)
            return t
        monkeypatch.setattr(store,"statement",st)
    else:
        orig=queue.script
        def sc(n):
            s=orig(n)
            if n==name:
                assert a in s.text; t=s.text.replace(a,b); s=queue.Script(t, hashlib.sha1(t.encode()).hexdigest())
            return s
        monkeypatch.setattr(queue,"script",sc)
    from hypothesis import Phase, settings
    from hypothesis.stateful import run_state_machine_as_test
    with pytest.raises(BaseException):
        run_state_machine_as_test(machine, settings=settings(max_examples=60, stateful_step_count=30, deadline=None, derandomize=True, database=None, phases=[Phase.generate], suppress_health_check=list(m.HealthCheck)))
