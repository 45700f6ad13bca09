"""First names that SmolLM2 and GPT-2 have tokens for, separated by spaces: those of several tasks."""

GIRLS = (
    "Mary Jennifer Linda Elizabeth Barbara Susan Jessica Sarah Lisa Nancy Betty Sandra Margaret Emily Michelle Amanda "
    "Melissa Rebecca Laura Helen Amy Angela Anna Ruth Rachel Janet Emma Maria Diane Julie Olivia Alice Jane Lucy Kate "
    "Claire Sophie Diana Sharon Kathleen Nicole Joan Lauren Ann Catherine Christine Samantha Deborah Stephanie "
    "Katherine Victoria Martha Andrea Hannah Teresa Sara Judith Julia Marie Caroline Charlotte Sophia Eleanor Clara "
    "Eva Molly Heather Monica Wendy Naomi Esther Anne Karen Carol Dorothy Louise Harriet Bella Jenny Sally Katie "
    "Amelia Nina Ellen Helena Miranda Jill Vera Judy Allison Annie Beth"
)
BOYS = (
    "John James David Joseph Thomas Charles Christopher Matthew Mark Paul Andrew Joshua Kevin Brian George Jason "
    "Jacob Eric Jonathan Stephen Larry Scott Benjamin Gregory Frank Jack Dennis Aaron Adam Nathan Henry Peter Luke "
    "Oliver Martin Carl Tom Bob Jeffrey Ryan Justin Samuel Alexander Jerry Tyler Oscar Victor Tim Ben Sam Dan Mike "
    "Joe Steve Alex Chris Tony Greg Fred Harry Robert Michael William Richard Daniel Anthony Donald Steven Kenneth "
    "Edward Ronald Timothy Nicholas Gary Patrick Raymond Douglas Walter Arthur Ralph Roy Eugene Philip Louis Bobby "
    "Johnny Albert Vincent Ernest Ethan Noah Sean Keith Roger Gerald Lawrence Jesse Bryan Joel Craig Neil Simon "
    "Stuart Hugh Ian Colin Leonard Norman Stanley Frederick Felix Hugo Ivan Marcus Lucas Isaac Theodore Adrian Julian "
    "Ted Ron Jim Jimmy Jeff Matt Phil Todd Tommy Alfred Barry Bernard Carlos Doug Duncan Edgar Edwin Geoffrey Gilbert "
    "Harold Harvey Jake Jeremy Jon Karl Malcolm Maurice Nathaniel Owen Pedro Sebastian"
)
