"""Reports on customers. Whoever asks for one waits until it is made."""

import jobs
from flask import Flask, jsonify, redirect, render_template, request, url_for
from report import make_report
from rq import Retry

from runtail import RuntailError

app = Flask(__name__)


@app.get("/")
def form():
    return render_template("form.html")


@app.post("/report")
def report():
    """The report as a page, or as JSON for scripts."""
    made = make_report(request.form["customer"])
    if request.accept_mimetypes.best == "application/json":
        return jsonify(made)
    return render_template("report.html", **made)


@app.post("/live")
def start():
    """Have it made by `rq worker`, and go to the page that shows it."""
    customer = request.form["customer"]
    opened = jobs.runtail.open(user=user(), input={"customer": customer})
    jobs.queue.enqueue(jobs.report, customer, ref=opened.ref, retry=Retry(max=2))
    return redirect(url_for("live", run_id=opened.run_id, _anchor=opened.watch_token), 303)


@app.get("/live/<run_id>")
def live(run_id):
    return render_template("live.html", run_id=run_id, events_url=jobs.runtail.watch_url(run_id))


@app.post("/live/<run_id>/stop")
def stop(run_id):
    jobs.runtail.for_user(user()).cancel(run_id)
    return "", 204


@app.errorhandler(RuntailError)
def refused(error):
    return jobs.refusal(error)


def user():
    """Whose run it is: as your login says."""
    return request.remote_user or "demo"
