//! A container image made by hand: an OCI layout folder with real tar layers, the same bytes on every run.
//!
//! Layers stay uncompressed and hold noise, so that no puller can shrink or change them on the way, and a digest
//! that fits proves every byte.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::{Random, digest_of};

const LAYER_TYPE: &str = "application/vnd.oci.image.layer.v1.tar";
const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
/// The unit in which tar writes headers and contents.
const TAR_BLOCK: usize = 512;

/// An image in an OCI layout folder, tagged `latest`.
pub struct OciImage {
    folder: PathBuf,
    digests: Vec<String>,
}

impl OciImage {
    /// Writes an image of `layers` layers with one file of `bytes_each` bytes each into the new folder `folder`.
    ///
    /// # Panics
    /// When the folder cannot be written.
    #[must_use]
    pub fn make(folder: &Path, layers: u64, bytes_each: usize) -> Self {
        let mut image = Self { folder: folder.to_owned(), digests: Vec::new() };
        fs::create_dir_all(folder.join("blobs/sha256")).expect("the folder can be written");
        let layers: Vec<Value> = (0..layers).map(|index| image.put(LAYER_TYPE, &layer(index, bytes_each))).collect();
        let config = image.put(CONFIG_TYPE, &text(&config_of(&layers)));
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST_TYPE, "config": config, "layers": layers,
        });
        let mut manifest = image.put(MANIFEST_TYPE, &text(&manifest));
        manifest["annotations"] = json!({"org.opencontainers.image.ref.name": "latest"});
        image.write_index(&manifest);
        image
    }

    /// The layout's folder, as `oci:FOLDER:latest` takes it.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The digests of all blobs: layers, config, manifest, in this order.
    #[must_use]
    pub fn digests(&self) -> &[String] {
        &self.digests
    }

    /// Every blob of a layout folder by its digest, each checked against it.
    ///
    /// # Panics
    /// When the folder is no layout, or a blob is not what its name says.
    #[must_use]
    pub fn blobs_in(folder: &Path) -> BTreeMap<String, Vec<u8>> {
        fs::read_dir(folder.join("blobs/sha256"))
            .unwrap_or_else(|error| panic!("{} is no OCI layout: {error}", folder.display()))
            .map(|entry| {
                let path = entry.expect("the folder can be read").path();
                let bytes = fs::read(&path).expect("a blob can be read");
                let digest = digest_of(&bytes);
                assert!(
                    digest.ends_with(&*path.file_name().unwrap_or_default().to_string_lossy()),
                    "{} holds {digest}",
                    path.display()
                );
                (digest, bytes)
            })
            .collect()
    }

    /// Writes a blob, remembers its digest and describes it.
    fn put(&mut self, media_type: &str, bytes: &[u8]) -> Value {
        let digest = digest_of(bytes);
        let file = self.folder.join("blobs").join(digest.replace(':', "/"));
        fs::write(file, bytes).expect("the folder can be written");
        self.digests.push(digest.clone());
        json!({"mediaType": media_type, "digest": digest, "size": bytes.len()})
    }

    fn write_index(&self, manifest: &Value) {
        let index = json!({"schemaVersion": 2, "manifests": [manifest]});
        fs::write(self.folder.join("index.json"), text(&index)).expect("the folder is there");
        let layout = json!({"imageLayoutVersion": "1.0.0"});
        fs::write(self.folder.join("oci-layout"), text(&layout)).expect("the folder is there");
    }
}

/// The image's config: uncompressed layers are their own diff ids.
fn config_of(layers: &[Value]) -> Value {
    let ids: Vec<&Value> = layers.iter().map(|layer| &layer["digest"]).collect();
    json!({
        "architecture": "amd64", "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": ids},
    })
}

fn text(value: &Value) -> Vec<u8> {
    value.to_string().into_bytes()
}

/// A tar archive with one file of noise, other noise for each `index`.
fn layer(index: u64, bytes: usize) -> Vec<u8> {
    let mut noise = Random::new(index);
    let contents = std::iter::repeat_with(|| noise.draw().to_le_bytes()).flatten();
    let mut tar = tar_header(&format!("layer-{index}"), bytes).to_vec();
    tar.extend(contents.take(bytes));
    // The file is filled up to a whole block; two empty blocks end the archive.
    tar.resize(tar.len().next_multiple_of(TAR_BLOCK) + 2 * TAR_BLOCK, 0);
    tar
}

/// The ustar header of a plain file owned by root, changed at the epoch.
fn tar_header(name: &str, size: usize) -> [u8; TAR_BLOCK] {
    let mut header = [0; TAR_BLOCK];
    let mut put = |at: usize, text: &str| {
        header[at..at + text.len()].copy_from_slice(text.as_bytes());
    };
    put(0, name);
    put(100, "0000644\0");
    put(108, "0000000\0");
    put(116, "0000000\0");
    put(124, &format!("{size:011o}\0"));
    put(136, "00000000000\0");
    // While it is summed up, the checksum itself counts as blanks.
    put(148, "        ");
    put(156, "0");
    put(257, "ustar\x0000");
    let sum: u32 = header.iter().copied().map(u32::from).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::super::program::run;
    use super::*;

    #[test]
    fn an_image_holds_its_blobs_under_their_digests() {
        let folder = tempfile::tempdir().unwrap();
        let image = OciImage::make(folder.path(), 2, 700);
        assert_eq!(image.digests().len(), 4);
        let blobs = OciImage::blobs_in(image.folder());
        assert!(image.digests().iter().all(|digest| blobs.contains_key(digest)));
    }

    #[test]
    fn a_layer_is_an_archive_that_tar_can_read() {
        let folder = tempfile::tempdir().unwrap();
        let archive = folder.path().join("layer.tar");
        fs::write(&archive, layer(7, 1000)).unwrap();
        let listed = run(Command::new("tar").arg("-tvf").arg(&archive));
        assert!(listed.contains("1000") && listed.contains("layer-7"), "{listed}");
    }
}
