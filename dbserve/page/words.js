// What the service's names mean, in plain words.

import { duration, significant } from "/assets/format.js";

export const STATUSES = [
  "running", "queued", "recovering", "assembling", "evaluating", "pausing", "paused", "cancelling",
  "succeeded", "failed", "cancelled",
];
export const ENDED = new Set(["succeeded", "failed", "cancelled"]);

const STATUS_MEANS = {
  queued: "waits for workers",
  running: "trains",
  recovering: "lost a worker, and goes on from the last checkpoint",
  assembling: "its blocks become one model",
  evaluating: "the model is examined",
  pausing: "workers save a last checkpoint",
  paused: "holds no workers until it is resumed",
  cancelling: "workers save a last checkpoint and leave",
  succeeded: "trained, assembled and examined",
  failed: "ended without a model",
  cancelled: "ended on request",
  pending: "waits for its turn",
  launched: "a worker is being started",
};

const REASONS = {
  user_cancelled: "cancelled on request",
  deadline_exceeded: "a deadline of the job has passed",
  unschedulable: "no node of the cluster can hold it",
  gpu_oom: "the GPU ran out of memory",
  host_oom: "the machine ran out of memory",
  worker_lost: "its worker was lost",
  preempted: "its worker was told to leave",
  stalled: "its worker took no step for too long",
  nonfinite_loss: "the loss is no number any more",
  data_error: "its data cannot be read",
  storage_error: "the artefact store does not answer",
  checkpoint_invalid: "a checkpoint is damaged",
  version_mismatch: "worker and service are of different versions",
  config_invalid: "its settings are invalid",
  dependency_failed: "something it needs has failed",
  controller_error: "the service itself failed",
  worker_error: "its worker failed",
};

const CONDITIONS = {
  unschedulable: "no node of the cluster could hold it",
  unreachable: "its worker has not been heard of for a while",
  stalled: "its worker lives, but takes no step",
  checkpoint_stale: "its last checkpoint could not be saved",
};

const KINDS = {
  trunk: "Trunk",
  end_to_end: "End to end",
  shallow_long: "Shallow, trained longer",
  data_parallel: "Data parallel",
  assembly: "Assembly",
  evaluation: "Evaluation",
};

const plain = (name) => String(name).replaceAll("_", " ");

export const statusMeans = (status) => STATUS_MEANS[status] ?? "";
export const reasonMeans = (reason) => REASONS[reason] ?? plain(reason);
export const conditionMeans = (condition) => CONDITIONS[condition] ?? plain(condition);

/** Why, in one line: what the reason means, and the message where it says more. */
export function why({ reason, message }) {
  if (reason === "user_cancelled") return ""; // as the status says already
  const meaning = reason ? reasonMeans(reason) : "";
  return [meaning, message].filter(Boolean).join(": ");
}

/** "block-0" -> "Block 0" */
export function taskTitle(name) {
  const known = KINDS[name];
  if (known) return known;
  const [kind, index] = String(name).split("-");
  const title = plain(kind);
  return `${title.charAt(0).toUpperCase()}${title.slice(1)}${index === undefined ? "" : ` ${index}`}`;
}

/** What happened, in one line: [sentence, tone]. Tones: good, bad, warn, plain. */
export function eventSentence({ kind, job_status: status, data }) {
  switch (kind) {
    case "job_created": return ["job accepted", "plain"];
    case "job_pause_requested": return ["pause requested", "warn"];
    case "job_resume_requested": return ["resume requested", "plain"];
    case "job_cancel_requested": return ["cancel requested", "warn"];
    case "job_retry_requested": return ["another try requested", "plain"];
    case "job_finished":
      return [`job ${status}`, status === "succeeded" ? "good" : status === "failed" ? "bad" : "warn"];
    case "launched": return ["worker requested", "plain"];
    case "started": return [`started on ${data.node ?? "a node"}${data.gpu ? `, GPU ${data.gpu}` : ""}`, "plain"];
    case "restored": return restored(data);
    case "checkpointed": return [`checkpoint saved at step ${data.checkpoint?.step ?? data.step ?? "?"}`, "plain"];
    case "checkpoint_failed": return [`checkpoint of step ${data.step} failed: ${data.message}`, "bad"];
    case "finished": return ["finished", "good"];
    case "crashed": return [`crashed: ${why(data)}${again(data.retry_after)}`, "bad"];
    case "pause_requested": return ["is to pause", "warn"];
    case "move_requested": return [`is to move: ${data.message}`, "warn"];
    case "resumed": return ["resumed", "plain"];
    case "cancel_requested": return [`is to stop${data.message ? `: ${data.message}` : ""}`, "warn"];
    case "stopped": return ["stopped", "warn"];
    case "retried": return ["gets another try", "plain"];
    case "held": return data.message ? [`held back: ${why(data)}`, "warn"] : ["is held back no more", "plain"];
    case "abandoned": return [`given up: ${data.message}`, "bad"];
    default: return [plain(kind), "plain"];
  }
}

function restored({ step, lost }) {
  const passed = lost?.length ? `, past ${lost.length} damaged checkpoint${lost.length > 1 ? "s" : ""}` : "";
  return [step ? `goes on from step ${step}${passed}` : `begins at step 0${passed}`, passed ? "warn" : "plain"];
}

const again = (seconds) => (seconds ? `; tried again after ${duration(seconds)}` : "");

/** Of [start, stop): "layers 2–3" */
export const layerRange = ([start, stop]) => (stop - start === 1 ? `layer ${start}` : `layers ${start}–${stop - 1}`);

/** A range of noise levels, high to low, as the blocks divide it. */
export const noiseRange = (low, high) => `noise ${significant(high)} – ${significant(low)}`;
