"""What an image file says beside its pixels: physical pixel size, and the provenance that a restored copy carries.

Three dialects are spoken, each one read and written back in its own words: OME-XML, ImageJ's ``key=value`` lines, and
tifffile's JSON for plain TIFF. Unknown content is kept as it is: a restored copy must not lose what was measured.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from xml.etree import ElementTree

from .errors import ImageError

MICROMETRES_PER_UNIT = {
    "m": 1e6,
    "cm": 1e4,
    "mm": 1e3,
    "µm": 1.0,
    "μm": 1.0,  # the Greek letter beside the micro sign: both are in use
    "um": 1.0,
    "micron": 1.0,
    "microns": 1.0,
    "micrometer": 1.0,
    "\\u00b5m": 1.0,  # how ImageJ escapes the micro sign in an ASCII description
    "nm": 1e-3,
    "pm": 1e-6,
    "å": 1e-4,
    "inch": 25400.0,
}
# A coarser "pixel size" is a screen or print resolution (72 dpi is 353 um), written by software that knew none.
COARSEST_PIXEL_UM = 100.0
OME_PIXEL_TYPES = {"uint8": "uint8", "uint16": "uint16", "float32": "float"}
ANNOTATION_NAMESPACE = "photonstep/provenance"
IMAGEJ_TAG_KEYS = (
    "Info",
    "Labels",
    "Ranges",
    "LUTs",
    "Plot",
    "ROI",
    "Overlays",
    "Properties",
)
IMAGEJ_PIXEL_KEYS = ("ROI", "Overlays")  # in pixel coordinates
PROVENANCE_KEY = "photonstep"  # in ImageJ's description, in tifffile's JSON, and as a PNG text

# (x, y) pixels per unit as the rationals that TIFF stores, and TIFF's unit: 1 none, 2 inch, 3 centimetre.
Resolution = tuple[tuple[int, int], tuple[int, int], int]


@dataclass(frozen=True, kw_only=True)
class ImageMetadata:
    """What a restored copy takes over from its original, beside shape, axes and dtype."""

    dialect: str = "plain"  # "ome", "imagej" or "plain"
    description: str = ""
    resolution: Resolution | None = None
    compressed: bool = False
    datetime: str | None = None
    imagej: Mapping[str, Any] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)  # of a PNG


def to_micrometres(size: float, unit: str) -> float | None:
    """Return ``size`` in µm, or None when the unit is no length (ImageJ's "pixel") or the size is not positive."""
    factor = MICROMETRES_PER_UNIT.get(unit.strip().lower())
    return size * factor if factor is not None and size > 0 else None


# --- OME-XML -------------------------------------------------------------------------------------------------------


def parse_ome(xml: str, name: str) -> ElementTree.Element:
    """Parse OME-XML; a document type declaration is refused, because entities can be made to expand without end."""
    if "<!DOCTYPE" in xml:
        raise ImageError(
            f"{name}: its OME-XML declares a document type, which OME-XML never needs; the file is not read"
        )
    try:
        return ElementTree.fromstring(xml)
    except ElementTree.ParseError as error:
        raise ImageError(f"{name}: its OME-XML does not parse ({error}); re-export the file") from error


def _namespace(element: ElementTree.Element) -> str:
    match = re.match(r"\{.*\}", element.tag)
    return match.group(0) if match else ""


def ome_pixel_size_um(root: ElementTree.Element) -> tuple[float, float] | None:
    """Return (y, x) pixel size in µm of the first image; OME's default unit is µm."""
    pixels = root.find(f".//{_namespace(root)}Pixels")
    if pixels is None:
        return None
    sizes = []
    for axis in "YX":
        value = pixels.get(f"PhysicalSize{axis}")
        size = to_micrometres(float(value), pixels.get(f"PhysicalSize{axis}Unit", "µm")) if value else None
        if size is None:
            return None
        sizes.append(size)
    return sizes[0], sizes[1]


def ome_provenance(root: ElementTree.Element) -> dict[str, Any] | None:
    """Return the newest provenance annotation, None when there is none."""
    for annotation in reversed(list(root.iter())):
        if annotation.tag.endswith("}CommentAnnotation") and annotation.get("Namespace") == ANNOTATION_NAMESPACE:
            value = next(
                (child.text for child in annotation if child.tag.endswith("}Value")),
                None,
            )
            return json.loads(value) if value else None
    return None


def finer_resolution(resolution: Resolution, scale: int) -> Resolution:
    """Resolution tags of a copy with ``scale`` times as many pixels on the same length; TIFF's numbers have 32 bits."""

    def finer(count: int, per: int) -> tuple[int, int]:
        count *= scale
        while count >= 2**32:
            count, per = count // 2, per // 2
        return count, per

    return finer(*resolution[0]), finer(*resolution[1]), resolution[2]


def restored_ome(
    xml: str,
    dtype: str,
    plane_count: int,
    provenance: Mapping[str, Any] | None,
    name: str,
    scale: int = 1,
) -> bytes:
    """Return the OME-XML of a restored copy: everything kept, the pixels' place and type renewed, provenance added.

    The copy holds its planes in DimensionOrder in one file, so one ``TiffData`` describes them; the UUID is dropped,
    because a copy is not the file that the UUID names. A finer copy (``scale``) has more and smaller pixels; regions of
    interest, which count in pixels, stay with the original.
    """
    root = parse_ome(xml, name)
    namespace = _namespace(root)
    root.attrib.pop("UUID", None)
    image = root.find(f"{namespace}Image")
    pixels = None if image is None else image.find(f"{namespace}Pixels")
    if image is None or pixels is None:
        raise ImageError(f"{name}: its OME-XML has no Image/Pixels; re-export the file")
    if pixels.get("Type") != OME_PIXEL_TYPES[dtype]:
        pixels.set("Type", OME_PIXEL_TYPES[dtype])
        pixels.attrib.pop("SignificantBits", None)
    pixels.set("BigEndian", "false")
    if scale != 1:
        _refine(root, pixels, scale)
    _replace_tiff_data(pixels, namespace, plane_count)
    if provenance is not None:
        _annotate(root, image, namespace, provenance)
    ElementTree.register_namespace("", namespace.strip("{}"))
    text = ElementTree.tostring(root, encoding="unicode")
    return b'<?xml version="1.0" encoding="UTF-8"?>' + text.encode("ascii", "xmlcharrefreplace")


def _refine(root: ElementTree.Element, pixels: ElementTree.Element, scale: int) -> None:
    for axis in "XY":
        pixels.set(f"Size{axis}", str(int(pixels.get(f"Size{axis}", "0")) * scale))
        size = pixels.get(f"PhysicalSize{axis}")
        if size is not None:
            pixels.set(f"PhysicalSize{axis}", repr(float(size) / scale))
    for parent in root.iter():
        for child in [c for c in parent if c.tag.rpartition("}")[2] in ("ROI", "ROIRef")]:
            parent.remove(child)


def _replace_tiff_data(pixels: ElementTree.Element, namespace: str, plane_count: int) -> None:
    old = [child for child in pixels if child.tag.rpartition("}")[2] in ("TiffData", "BinData", "MetadataOnly")]
    # The schema wants Channel* TiffData* Plane*: the new element takes the old one's place.
    channels = len(pixels.findall(f"{namespace}Channel"))
    position = list(pixels).index(old[0]) if old else channels
    for child in old:
        pixels.remove(child)
    element = ElementTree.Element(f"{namespace}TiffData", {"IFD": "0", "PlaneCount": str(plane_count)})
    pixels.insert(position, element)


def _annotate(
    root: ElementTree.Element,
    image: ElementTree.Element,
    namespace: str,
    provenance: Mapping[str, Any],
) -> None:
    # Until 2015 the annotations and their references lived in a namespace of their own.
    separate = namespace.replace("/OME/", "/SA/") if "/Schemas/OME/201" in namespace and "2016" not in namespace else ""
    if separate:
        ElementTree.register_namespace("SA", separate.strip("{}"))
    sa = separate or namespace
    annotations = root.find(f"{sa}StructuredAnnotations")
    if annotations is None:
        annotations = ElementTree.Element(f"{sa}StructuredAnnotations")
        images = [index for index, child in enumerate(root) if child.tag == f"{namespace}Image"]
        root.insert(images[-1] + 1, annotations)
    taken = {element.get("ID") for element in root.iter()}
    identifier = next(
        f"Annotation:photonstep:{n}" for n in range(len(taken) + 1) if f"Annotation:photonstep:{n}" not in taken
    )
    comment = ElementTree.SubElement(
        annotations,
        f"{sa}CommentAnnotation",
        {"ID": identifier, "Namespace": ANNOTATION_NAMESPACE},
    )
    ElementTree.SubElement(comment, f"{sa}Value").text = json.dumps(provenance, sort_keys=True)
    ElementTree.SubElement(image, f"{sa}AnnotationRef", {"ID": identifier})


# --- ImageJ --------------------------------------------------------------------------------------------------------


def imagej_pixel_size_um(metadata: Mapping[str, Any], resolution: Resolution | None) -> tuple[float, float] | None:
    """Return (y, x) pixel size in µm from ImageJ's unit and the resolution tags, which count pixels per that unit."""
    if resolution is None or 0 in resolution[0] + resolution[1]:
        return None
    (x_count, x_per), (y_count, y_per), _ = resolution
    unit = str(metadata.get("unit", ""))
    y, x = to_micrometres(y_per / y_count, unit), to_micrometres(x_per / x_count, unit)
    return (y, x) if y is not None and x is not None else None


def restored_imagej(description: str, same_units: bool, provenance: Mapping[str, Any] | None, scale: int = 1) -> str:
    """Return ImageJ's description for a restored copy; without the display range when the pixels' unit changed."""
    lines = [line for line in description.splitlines() if line.strip() and not line.startswith(f"{PROVENANCE_KEY}=")]
    if not same_units:
        lines = [line for line in lines if not line.startswith(("min=", "max="))]
    if scale != 1:  # the origin counts in pixels
        lines = [_refined_origin(line, scale) for line in lines]
    if provenance is not None:
        lines.append(f"{PROVENANCE_KEY}={json.dumps(provenance, sort_keys=True)}")
    return "\n".join(lines) + "\n"


def _refined_origin(line: str, scale: int) -> str:
    key, _, value = line.partition("=")
    try:
        return f"{key}={float(value) * scale!r}" if key in ("xorigin", "yorigin") else line
    except ValueError:
        return line


def restored_imagej_tag(
    metadata: Mapping[str, Any], same_units: bool, provenance: Mapping[str, Any] | None, scale: int = 1
) -> dict[str, Any]:
    """Return what ImageJ keeps in its private tag (labels, colours, overlays); Show Info tells the provenance.

    Regions and overlays count in pixels: they stay with the original when the copy is finer.
    """
    stale = (() if same_units else ("Ranges",)) + (() if scale == 1 else IMAGEJ_PIXEL_KEYS)
    kept = {key: metadata[key] for key in IMAGEJ_TAG_KEYS if key in metadata and key not in stale}
    if provenance is not None:
        info = str(kept.get("Info", "")).rstrip()
        kept["Info"] = f"{info}\n{PROVENANCE_KEY}: {json.dumps(provenance, sort_keys=True)}\n".lstrip()
    return kept


# --- plain TIFF and PNG --------------------------------------------------------------------------------------------


def plain_pixel_size_um(resolution: Resolution | None) -> tuple[float, float] | None:
    """Return (y, x) pixel size in µm from resolution tags, None when they name no unit or mean a screen or paper."""
    if resolution is None:
        return None
    (x_count, x_per), (y_count, y_per), unit = resolution
    name = {2: "inch", 3: "cm"}.get(unit)
    if name is None or 0 in (x_count, y_count, x_per, y_per):
        return None
    y, x = (MICROMETRES_PER_UNIT[name] * per / count for count, per in ((y_count, y_per), (x_count, x_per)))
    return (y, x) if max(y, x) <= COARSEST_PIXEL_UM else None


def plain_provenance(description: str) -> dict[str, Any] | None:
    """Return the provenance in a JSON description, None when there is none."""
    found = json_object(description)
    provenance = found.get(PROVENANCE_KEY) if found else None
    return provenance if isinstance(provenance, dict) else None


def json_object(text: object) -> dict[str, Any] | None:
    """Return the JSON object that ``text`` holds, or None."""
    if not isinstance(text, str) or not text.startswith("{"):
        return None
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def restored_plain(
    description: str,
    shape: tuple[int, ...],
    axes: str,
    provenance: Mapping[str, Any] | None,
) -> str:
    """Return tifffile's JSON description (shape and axes) for a restored copy, with what the original's said."""
    kept = json_object(description) or ({"Description": description} if description else {})
    content: dict[str, Any] = {"shape": list(shape), "axes": axes}
    content |= {key: value for key, value in kept.items() if key not in ("shape", "axes", "truncated", PROVENANCE_KEY)}
    if provenance is not None:
        content[PROVENANCE_KEY] = dict(provenance)
    return json.dumps(content)
