//! The content of the stub's repositories: a manifest and blobs that follow from their names alone.
//!
//! Each path has bytes of its own, so an answer that reached the wrong client does not pass for the right one.

use std::sync::Mutex;

use bytes::Bytes;
use sha2::{Digest, Sha256};

use crate::Random;

/// The random bytes behind blobs of common sizes, made once.
const SHARED: usize = 2 * 1024 * 1024;

/// The random bytes behind all blobs: as many as the largest needed so far.
static SHARED_BYTES: Mutex<Bytes> = Mutex::new(Bytes::new());

/// The bytes of the blob at `path` (`/v2/NAME/blobs/DIGEST`) in a registry with blobs of `size` bytes. Its digest is
/// a name only: it is not computed from these bytes.
///
/// # Panics
/// Never: nobody panics with the shared bytes in hand.
#[must_use]
pub fn blob_of(path: &str, size: usize) -> Bytes {
    // Blobs start at different places of the same random bytes.
    let hash = Sha256::digest(path);
    let start = usize::from(u16::from_be_bytes([hash[0], hash[1]]));
    let mut shared = SHARED_BYTES.lock().expect("no panic under a lock");
    if shared.len() < start + size {
        // A longer one begins with the shorter.
        *shared = random_bytes(SHARED.max(start + size));
    }
    shared.slice(start..start + size)
}

/// The manifest of the repository `name`: a small JSON with one layer, `blob_size` bytes long.
#[must_use]
pub fn manifest_of(name: &str, blob_size: usize) -> Bytes {
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "layers": [{
            "mediaType": "application/vnd.oci.image.layer.v1.tar",
            "digest": digest_of(name.as_bytes()),
            "size": blob_size,
        }],
    });
    Bytes::from(manifest.to_string())
}

/// The digest of these bytes: `sha256:` and hex.
#[must_use]
pub fn digest_of(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    format!("sha256:{digest:x}")
}

fn random_bytes(length: usize) -> Bytes {
    let mut random = Random::new(0);
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        bytes.extend_from_slice(&random.draw().to_le_bytes());
    }
    bytes.truncate(length);
    Bytes::from(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blob_is_always_the_same_and_no_other() {
        for size in [0, 1000, 1024 * 1024, 3 * 1024 * 1024] {
            let blob = blob_of("/v2/a/blobs/1", size);
            assert_eq!(blob.len(), size);
            assert_eq!(blob, blob_of("/v2/a/blobs/1", size));
            assert!(size == 0 || blob != blob_of("/v2/a/blobs/2", size));
        }
    }
}
