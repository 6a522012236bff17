//! The files for deploying, judged by the programs that will read them: manifests by kustomize, the chart by helm, both by
//! the schemas of Kubernetes, alerts and dashboard by Prometheus' own checker and a live `/metrics`, units by systemd, the
//! image by buildah. A program that is missing fails its test; only where the machine cannot build an image, `NOT RUN` is printed,
//! with the cause.

mod chart;
mod dragonfly;
mod image;
mod install;
mod manifests;
mod monitoring;
mod package;
mod promql;
mod tool;
mod units;
