"""`load-client`: the load client against the least server there can be (`emitter.c`), to know what it adds itself."""

from dataclasses import dataclass

from app.dev.services.servers import free_port
from bench.load import Load, Windows, build
from bench.processes import ROOT, Child
from bench.report import Result
from bench.stage import Stage

EMITTER = ROOT / "bench" / "emitter.c"
GRACE_SECONDS = 15.0


@dataclass(frozen=True, slots=True)
class LoadClient:
    """Its CPU share and the latency that is none of a server's."""

    windows: int = 1_000
    rate: float = 100
    seconds: float = 10
    payload_bytes: int = 120
    clients: int = 1

    def run(self, stage: Stage) -> Result:
        """Play it."""
        port, events = free_port(), round(self.rate * self.seconds)
        numbers = [port, self.windows, events, self.rate, self.payload_bytes]
        command = [str(build(EMITTER, stage.folder)), *map(str, numbers)]
        limit = self.seconds + GRACE_SECONDS
        windows = Windows(port, ["/"], self.windows, since=1, until_seq=1 + events, seconds=limit)
        with Child("emitter", command, stage.folder) as emitter:
            emitter.wait_heard("listening")
            with Load(windows, stage.folder, self.clients) as load:
                load.wait_open()
                found = load.result()
            sent = emitter.result(limit)
        figures = {
            "frames": found["frames"],
            "delivered": found["frames"] / (self.windows * events),
            **{name: found["latency"].get(name) for name in ("p50_ms", "p99_ms", "max_ms")},
            "gaps": found["gaps"],
            "repeats": found["repeats"],
            "emitter_cpu_us_per_frame": sent["cpu_s"] / found["frames"] * 1e6 if found["frames"] else None,
            "client_cpu_us_per_frame": found["measured_cpu_s"] / found["frames"] * 1e6 if found["frames"] else None,
            "client_cpu_share": found["measured_cpu_s"] / found["measured_s"],
        }
        return Result({"emitter": figures})
