"""Reports on customers. Whoever asks for one waits until it is made."""

from flask import Flask, jsonify, render_template, request
from report import make_report

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
